# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What trytond answers by HTTP to a monitoring system."""
import json

from trytond.protocols.wrappers import (
    HTTPStatus, Response, abort, user_application, with_pool, with_transaction)
from trytond.transaction import Transaction, without_check_access
from trytond.wsgi import app

from . import metrics as metrics_


@app.route('/<database_name>/email_queue/health', methods={'GET'})
@with_pool
@with_transaction()
@user_application('email_queue')
def health(request, pool):
    "Return the numbers as JSON, with status 503 if the queue is unhealthy"
    with without_check_access():
        numbers = _health_of_member(pool).measure()
        servers = metrics_.measure()
    return _response(
        json.dumps({**numbers.json(), 'servers': servers}), 'application/json',
        HTTPStatus.OK if numbers.healthy else HTTPStatus.SERVICE_UNAVAILABLE)


@app.route('/<database_name>/email_queue/metrics', methods={'GET'})
@with_pool
@with_transaction()
@user_application('email_queue')
def metrics(request, pool):
    "Return the numbers of each server in the text format of Prometheus"
    with without_check_access():
        _health_of_member(pool)
        text = metrics_.text()
    return _response(text, metrics_.CONTENT_TYPE)


def _health_of_member(pool):
    "Return the model of the health if the user is a member of the group"
    try:
        Health = pool.get('email.queue.health')
    except KeyError:
        # The route exists for every database, even if the module is not
        # activated in it
        abort(HTTPStatus.NOT_FOUND)
    if Transaction().user not in {u.id for u in Health.members()}:
        abort(HTTPStatus.FORBIDDEN)
    return Health


def _response(text, content_type, status=HTTPStatus.OK):
    return Response(
        text, status, headers={'Cache-Control': 'no-store'},
        content_type=content_type)
