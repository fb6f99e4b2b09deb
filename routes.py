# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What the server answers to a monitoring system."""
import json

from trytond.protocols.wrappers import (
    HTTPStatus, Response, abort, user_application, with_pool, with_transaction)
from trytond.transaction import Transaction, without_check_access
from trytond.wsgi import app


@app.route('/<database_name>/email_queue/health', methods={'GET'})
@with_pool
@with_transaction()
@user_application('email_queue')
def health(request, pool):
    try:
        Health = pool.get('email.queue.health')
    except KeyError:
        # The route is there for all databases, the module may be not
        abort(HTTPStatus.NOT_FOUND)
    with without_check_access():
        if Transaction().user not in {u.id for u in Health.members()}:
            abort(HTTPStatus.FORBIDDEN)
        numbers = Health.measure()
    return Response(
        json.dumps(numbers.json()),
        HTTPStatus.OK if numbers.healthy else HTTPStatus.SERVICE_UNAVAILABLE,
        headers={'Cache-Control': 'no-store'},
        content_type='application/json')
