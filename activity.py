# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""How many emails were sent, failed or wait, by hour and by day."""
import datetime as dt

from sql import Literal, Null, Select, Union
from sql.aggregate import Min, Sum
from sql.conditionals import Case, Coalesce
from sql.functions import DateTrunc

from trytond.model import ModelSQL, ModelView, fields
from trytond.pool import Pool

from .identity import WAITING
from .tools import database_time

EPOCH = dt.datetime(1970, 1, 1)


class Activity(ModelSQL, ModelView):
    "The numbers of sent, failed and waiting emails by period"

    sent = fields.Integer("Sent", help="The emails sent in the period.")
    failed = fields.Integer("Failed", help="The emails failed in the period.")
    waiting = fields.Integer(
        "Waiting",
        help="The emails queued in the period that are not yet sent. "
        "Older ones are in the first period.")
    oldest = fields.DateTime(
        "Oldest Waiting",
        help="When the oldest of the waiting emails was queued.")

    # The name of the period in SQL, its length, and the number of periods
    _period = None
    _length = None
    _count = None

    @classmethod
    def __setup__(cls):
        super().__setup__()
        cls._order.insert(0, ('ago', 'ASC'))

    @classmethod
    def table_query(cls):
        now = database_time()
        # All periods, so that a graph has a gap where nothing was sent
        periods = Union(*(
                Select([
                    Literal(id_).as_('id'), Literal(ago).as_('ago'),
                    cls.oldest.sql_cast(Literal(start)).as_('start')])
                for id_, ago, start in cls._periods(now)), all_=True)
        emails = cls._emails(now)
        start = DateTrunc(cls._period, periods.start)
        return periods.join(
            emails, 'LEFT', condition=emails.period == start).select(
                periods.id, periods.ago,
                cls._period_column(start),
                Coalesce(emails.sent, 0).as_('sent'),
                Coalesce(emails.failed, 0).as_('failed'),
                Coalesce(emails.waiting, 0).as_('waiting'),
                emails.oldest)

    @classmethod
    def _periods(cls, now):
        "Yield the permanent id, the distance and the start of each period"
        seconds = int(cls._length.total_seconds())
        last = int((now - EPOCH).total_seconds()) // seconds
        for ago in range(cls._count):
            id_ = last - ago
            yield id_, ago, EPOCH + id_ * cls._length

    @classmethod
    def _emails(cls, now):
        "Return the query of the numbers of emails by period"
        t = Pool().get('email.queue').__table__()
        *_, (_, _, since) = cls._periods(now)
        failed_at = Coalesce(t.write_date, t.create_date)
        at = Case(
            (t.state == 'sent', t.sent_at),
            (t.state == 'failed', failed_at),
            # Emails that wait from before are counted in the first period
            (t.create_date < since, since),
            else_=t.create_date)
        # A subquery, so that PostgreSQL groups by a column. It takes two equal
        # expressions with parameters for different expressions.
        emails = t.select(
            t.state, t.create_date, DateTrunc(cls._period, at).as_('period'),
            where=((t.state == 'sent') & (t.sent_at >= since))
            | ((t.state == 'failed') & (failed_at >= since))
            | t.state.in_(WAITING))
        waiting = emails.state.in_(WAITING)
        return emails.select(
            emails.period,
            _number(emails.state == 'sent').as_('sent'),
            _number(emails.state == 'failed').as_('failed'),
            _number(waiting).as_('waiting'),
            cls.oldest.sql_cast(
                Min(Case((waiting, emails.create_date), else_=Null))
                ).as_('oldest'),
            group_by=[emails.period])

    @classmethod
    def _period_column(cls, period):
        raise NotImplementedError


class ActivityHour(Activity):
    __name__ = 'email.queue.activity.hour'

    ago = fields.Integer(
        "Hours Ago", help="0 is this hour, 1 the hour before.")
    time = fields.DateTime("Time", format='%H:%M')

    _period = 'hour'
    _length = dt.timedelta(hours=1)
    # Neither client has room for the labels of more hours side by side
    _count = 24

    @classmethod
    def _period_column(cls, period):
        return cls.time.sql_cast(period).as_('time')


class ActivityDay(Activity):
    __name__ = 'email.queue.activity.day'

    ago = fields.Integer("Days Ago", help="0 is today, 1 yesterday.")
    date = fields.Date("Date", help="The day in UTC.")

    _period = 'day'
    _length = dt.timedelta(days=1)
    # As long as sent emails are kept by default
    _count = 30

    @classmethod
    def _period_column(cls, period):
        return cls.date.sql_cast(period).as_('date')


def _number(condition):
    return Sum(Case((condition, 1), else_=0))
