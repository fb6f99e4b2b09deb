# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""How the programs of the module open a database."""
from contextlib import contextmanager

from trytond.pool import Pool
from trytond.transaction import Transaction

__all__ = ['opened']


@contextmanager
def opened(database, model, readonly=True):
    """Start a transaction on a database and yield one of its models.

    :param database: the name of the database.
    :param model: the name of the model.
    :param readonly: whether the transaction is readonly.
    :raises LookupError: the module is not activated in the database.
    """
    Pool.start()
    pool = Pool(database)
    with Transaction().start(database, 0, readonly=True):
        pool.init()
    with Transaction().start(database, 0, readonly=readonly):
        try:
            Model = pool.get(model)
        except KeyError:
            raise LookupError("the module is not activated in the database")
        yield Model
