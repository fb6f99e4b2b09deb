# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.

import datetime as dt

from sql import Null
from sql.aggregate import Min, Sum
from sql.conditionals import Case, Coalesce
from sql.functions import DateTrunc

from trytond.model import ModelSQL, ModelView, fields
from trytond.pool import Pool

WAITING = ['outbox', 'sending']


class Activity(ModelSQL, ModelView):
    "What has become of the emails, by period"

    sent = fields.Integer("Sent", help="The emails sent in the period.")
    failed = fields.Integer("Failed", help="The emails failed in the period.")
    waiting = fields.Integer(
        "Waiting",
        help="The emails queued in the period that are not yet sent. "
        "Older ones are in the first period.")
    oldest = fields.DateTime(
        "Oldest Waiting",
        help="When the oldest of the waiting emails was queued.")

    _period = None
    _days = None

    @classmethod
    def table_query(cls):
        t = Pool().get('email.queue').__table__()
        since = dt.datetime.now() - dt.timedelta(days=cls._days)
        failed_at = Coalesce(t.write_date, t.create_date)
        at = Case(
            (t.state == 'sent', t.sent_at),
            (t.state == 'failed', failed_at),
            # A graph that shows all of them would show nothing else
            (t.create_date < since, since),
            else_=t.create_date)
        # PostgreSQL must group by a column: to it an expression with
        # parameters never is the same as one in SELECT
        emails = t.select(
            t.id, t.state, t.create_date,
            DateTrunc(cls._period, at).as_('period'),
            where=((t.state == 'sent') & (t.sent_at >= since))
            | ((t.state == 'failed') & (failed_at >= since))
            | t.state.in_(WAITING))
        waiting = emails.state.in_(WAITING)
        return emails.select(
            # Each email is in one period
            Min(emails.id).as_('id'),
            cls._period_column(emails.period),
            _count(emails.state == 'sent').as_('sent'),
            _count(emails.state == 'failed').as_('failed'),
            _count(waiting).as_('waiting'),
            cls.oldest.sql_cast(
                Min(Case((waiting, emails.create_date), else_=Null))
                ).as_('oldest'),
            group_by=[emails.period])

    @classmethod
    def _period_column(cls, period):
        raise NotImplementedError


class ActivityHour(Activity):
    __name__ = 'email.queue.activity.hour'

    time = fields.DateTime("Time", format='%H:%M')

    _period = 'hour'
    _days = 2

    @classmethod
    def __setup__(cls):
        super().__setup__()
        cls._order.insert(0, ('time', 'DESC'))

    @classmethod
    def _period_column(cls, period):
        return cls.time.sql_cast(period).as_('time')


class ActivityDay(Activity):
    __name__ = 'email.queue.activity.day'

    date = fields.Date("Date", help="The day in UTC.")

    _period = 'day'
    _days = 90

    @classmethod
    def __setup__(cls):
        super().__setup__()
        cls._order.insert(0, ('date', 'DESC'))

    @classmethod
    def _period_column(cls, period):
        return cls.date.sql_cast(period).as_('date')


def _count(condition):
    return Sum(Case((condition, 1), else_=0))
