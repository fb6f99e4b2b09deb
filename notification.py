# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""How users are notified of emails that have failed."""
import json
import textwrap
from collections import defaultdict

from trytond.i18n import gettext, ngettext
from trytond.pool import Pool
from trytond.tools import grouped_slice
from trytond.transaction import Transaction, check_access, without_check_access

__all__ = ['notify', 'notify_of_queue']

MODEL = 'email.queue'
METHOD = 'email.queue|send_all'
ICON = 'tryton-warning'
ACTION = 'email_queue.act_email_queue_form'
OWN = 'email.queue.own'
# A notification of more emails tells only their number
EMAILS = 20
# A notification opens so many records at most, because clients show no more
RECORDS = 1000
DESCRIPTION_LENGTH = 300
SLICE = 1000


def notify(Model, ids):
    """Notify users that the emails that they have queued have failed.

    The notifications are made in a transaction of their own, because the
    scheduler rolls back the transaction of a run that ends in an error.

    :param ids: the ids of the emails.
    """
    with Transaction().new_transaction() as transaction, \
            transaction.set_user(0), transaction.reset_context(), \
            transaction.set_context(_cron=METHOD), without_check_access():
        failed, by_user = _failed(Model, ids)
        if not failed:
            return
        pool = Pool()
        Notification = pool.get('res.notification')
        User = pool.get('res.user')
        Notification.save([
                _notification(user, Model, by_user[user.id])
                # Searched, so that the users are active and exist
                for user in User.search([('id', 'in', list(by_user))])])
        pool.get('ir.cron').notify(
            ICON, ACTION, None,
            'email_queue.msg_failed_many', n=failed, number=failed)


def _failed(Model, ids):
    "Return the number of failed emails, and their ids by the user's id"
    count, by_user = 0, defaultdict(list)
    cursor = Transaction().connection.cursor()
    t = Model.__table__()
    for ids in grouped_slice(sorted(ids), SLICE):
        cursor.execute(*t.select(
                t.id, t.create_uid, t.from_addr, t.resource,
                where=t.id.in_(list(ids)) & (t.state == 'failed'),
                order_by=[t.id]))
        for id_, user, from_addr, resource in cursor:
            count += 1
            # No notification about an email that may itself report a failure
            if (from_addr != '<>'
                    and not (resource or '').startswith(
                        f'{Model.__name__},')):
                by_user[user].append(id_)
    return count, by_user


def notify_of_queue(users, label, words, n, **variables):
    """Notify users of something about the queue.

    :param label: the name of the module's message for the label.
    :param words: the name of the module's message for the description.
    :param n: the number that decides on the plural of ``words``.
    :param variables: the variables in ``words``.
    :return: whether there was a user to notify.
    """
    pool = Pool()
    Action = pool.get('ir.action')
    ModelData = pool.get('ir.model.data')
    Notification = pool.get('res.notification')
    action = Action.get_action_id(ModelData.get_id(ACTION))
    notifications = []
    for user in users:
        language = user.language.code if user.language else None
        with Transaction().set_context(language=language):
            notifications.append(Notification(
                    user=user,
                    icon=ICON,
                    label=gettext(f'email_queue.{label}'),
                    description=ngettext(
                        f'email_queue.{words}', n, **variables),
                    action=action if _reads(user, MODEL) else None))
    Notification.save(notifications)
    return bool(notifications)


def _notification(user, Model, ids):
    pool = Pool()
    Notification = pool.get('res.notification')
    notification = Notification(user=user, icon=ICON)
    language = user.language.code if user.language else None
    with Transaction().set_context(language=language):
        notification.label = ngettext(
            'email_queue.msg_failed_label', len(ids))
        if len(ids) > EMAILS:
            notification.description = ngettext(
                'email_queue.msg_failed_many', len(ids), number=len(ids))
        else:
            notification.description = textwrap.shorten(
                _description(Model.browse(ids)), DESCRIPTION_LENGTH,
                placeholder='…')
        # The notification opens the failed emails: in the queue for users who
        # may read it, else among their own emails
        notification.model = (
            Model.__name__ if _reads(user, Model.__name__) else OWN)
        notification.records = json.dumps(ids[-RECORDS:])
    return notification


def _description(emails):
    if len(emails) == 1:
        email, = emails
        return gettext('email_queue.msg_failed_one',
            subject=email.rec_name, recipients=email.to_addrs,
            error=email.outcome)
    return ngettext('email_queue.msg_failed_some', len(emails),
        number=len(emails), subjects=', '.join(e.rec_name for e in emails))


def _reads(user, model):
    ModelAccess = Pool().get('ir.model.access')
    with Transaction().set_user(user.id), check_access():
        return bool(model) and ModelAccess.check(
            model, 'read', raise_exception=False)
