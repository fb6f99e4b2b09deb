# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The health of the queue: its numbers, their limits, and who is told."""
from types import MappingProxyType
from typing import NamedTuple

from sql import Literal, Null
from sql.aggregate import Count

from trytond.model import ModelSQL
from trytond.pool import Pool
from trytond.transaction import Transaction, without_check_access

from . import identity, incomplete, notification, original
from .access import GROUP
from .program import opened
from .settings import Settings
from .store import queues
from .tools import database_time, utc_now

__all__ = ['CRITICAL', 'Numbers', 'OK', 'monitor']

# The exit statuses of a plugin of a monitoring system
OK, CRITICAL = 0, 2


class Numbers(NamedTuple):
    """The numbers of a queue and their limits.

    :param due: how many emails are due.
    :param waiting: how many emails wait, due or not.
    :param failed: how many emails have failed and wait for a person's
        decision.
    :param age: the whole seconds since the oldest of the due emails became
        due, 0 where no email is due.
    :param age_limit: the most seconds that ``age`` may have.
    :param failed_limit: the number of failed emails that makes the queue
        unhealthy, 0 for no limit.
    :param reasons: two dicts, ``failed`` and ``waiting``, of how many of these
        emails have each reason. Emails without a reason are not counted.
    """
    due: int
    waiting: int
    failed: int
    age: int
    age_limit: float
    failed_limit: int
    reasons: dict = MappingProxyType({'failed': {}, 'waiting': {}})

    @property
    def late(self):
        "Whether an email is due for too long"
        return self.age > self.age_limit

    @property
    def healthy(self):
        "Whether neither the age nor the failed emails exceed their limit"
        return not (
            self.late or 0 < self.failed_limit <= self.failed)

    def json(self):
        return {
            'healthy': self.healthy,
            'due': self.due,
            'waiting': self.waiting,
            'failed': self.failed,
            'age': self.age,
            'reasons': {
                name: dict(numbers) for name, numbers in self.reasons.items()},
            'limits': {
                'age': self.age_limit,
                'failed': self.failed_limit or None,
                },
            }

    def __str__(self):
        "The line of a plugin: for people, and after the bar for machines"
        return (
            f"EMAIL QUEUE {'OK' if self.healthy else 'CRITICAL'}: "
            f"{self.due} due, the oldest for {self.age} s, "
            f"{self.waiting} waiting, {self.failed} failed "
            f"| due={self.due} age={self.age}s;;{self.age_limit:g} "
            f"waiting={self.waiting} failed={self.failed}")


class Health(ModelSQL):
    """The health of the queue.

    There is a record from the moment at which the users were notified that the
    queue is late until the queue is no longer late.
    """
    __name__ = 'email.queue.health'

    @classmethod
    def __setup__(cls):
        super().__setup__()
        # Only trytond itself reads and writes the records
        cls.__rpc__.clear()

    @classmethod
    def measure(cls):
        "Return the numbers of the queue"
        settings = Settings.read()
        EmailQueue = Pool().get('email.queue')
        t = EmailQueue.__table__()
        now = database_time()
        number = Count(Literal(1))
        due = waiting = 0
        oldest = now
        # One state after another, because each has an index of its own. An
        # email of a sender that died is as late as an email in the outbox.
        for state in ['outbox', 'sending']:
            waiting_in, = _fetch(t.select(number, where=t.state == state))
            waiting += waiting_in
        for where in [t.state == 'sending', *queues(EmailQueue, t)]:
            where &= t.scheduled_at <= now
            due_in, = _fetch(t.select(number, where=where))
            due += due_in
            if due_in:
                # Not by MIN, because on SQLite the result of MIN is no time
                oldest = min(oldest, *_fetch(t.select(
                            t.scheduled_at, where=where,
                            order_by=[t.scheduled_at], limit=1)))
        unseen, stateless = incomplete.counts(t)
        failed, = _fetch(t.select(number, where=t.state == 'failed'))
        if unseen:
            # Incomplete rows are due as soon as the next run completes them
            due += unseen
            oldest = min(oldest, *_fetch(t.select(
                        t.create_date,
                        where=incomplete.is_unseen(t)
                        & (t.create_date != Null),
                        order_by=[t.create_date], limit=1)) or [now])
        return Numbers(
            due=due,
            waiting=waiting,
            failed=failed + stateless,
            age=int((now - oldest).total_seconds()),
            age_limit=settings.health_age,
            failed_limit=settings.health_failed,
            reasons=cls._reasons(t))

    @classmethod
    def _reasons(cls, t):
        "Return how many emails have failed, or wait, for which reason"
        reasons = {'failed': {}, 'waiting': {}}
        # By the condition and the order of an index of the emails
        for state, reason, number in _fetch_all(t.select(
                    t.state, t.reason, Count(Literal(1)),
                    where=(t.reason != Null)
                    & t.state.in_(['failed', *identity.WAITING]),
                    group_by=[t.state, t.reason])):
            numbers = reasons['failed' if state == 'failed' else 'waiting']
            numbers[reason] = numbers.get(reason, 0) + number
        return reasons

    @classmethod
    def watch(cls):
        """Notify users once when the queue is late.

        They are the members of the group, or the administrators while nobody
        is in the group. They are notified again only after the queue has
        recovered. This is a scheduled job of its own, because the job that
        sends may be at fault.
        """
        with Transaction().set_user(0), without_check_access():
            # Completed here, too, because another module may replace the job
            # that sends
            incomplete.complete(
                Pool().get('email.queue'), utc_now())
            original.notify_held()
            numbers = cls.measure()
            # While sending is switched off, nothing counts as late
            late = numbers.late and identity.may_send()
            notified = cls.search([])
            if notified and not late:
                cls.delete(notified)
            elif late and not notified and cls._notify(numbers):
                cls.create([{}])

    @classmethod
    def _notify(cls, numbers):
        "Notify users, and return whether there was anybody to notify"
        return notification.notify_of_queue(
            cls.watchers(), 'msg_late_label', 'msg_late', numbers.due,
            number=numbers.due, minutes=numbers.age // 60)

    @classmethod
    def members(cls):
        "Return the active users of the group that looks after the queue"
        return cls._users_of(GROUP)

    @classmethod
    def watchers(cls):
        "Return whom to notify: the members of the group, or administrators"
        return cls.members() or cls.administrators()

    @classmethod
    def administrators(cls):
        "Return the active users who administrate Tryton"
        User = Pool().get('res.user')
        if 'administrator' in User._fields:
            return User.search([('administrator', '=', True)])
        return cls._users_of('res.group_admin')

    @classmethod
    def _users_of(cls, group):
        "Return the active users of a group, by the group's XML id"
        pool = Pool()
        User = pool.get('res.user')
        group = pool.get('ir.model.data').get_id(group)
        # This table also has the users of the groups below, which inherit the
        # rights of the group
        members = pool.get('res.user-res.group').user_group_all_table()
        cursor = Transaction().connection.cursor()
        cursor.execute(*members.select(
                members.user, where=members.group == group))
        return User.search([('id', 'in', [id_ for id_, in cursor])])


def _fetch(query):
    return next(iter(_fetch_all(query)), None)


def _fetch_all(query):
    cursor = Transaction().connection.cursor()
    cursor.execute(*query)
    return cursor.fetchall()


def monitor(database):
    """Return the result of the plugin of a monitoring system.

    :param database: the name of the database.
    :return: the exit status, 0 or 2, and the line to print.
    """
    with opened(database, 'email.queue.health') as Health:
        numbers = Health.measure()
    return OK if numbers.healthy else CRITICAL, str(numbers)
