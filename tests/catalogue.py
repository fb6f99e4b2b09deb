#!/usr/bin/env python3
# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The catalogues of translations.

Run as a script it updates them from the code.
"""
from pathlib import Path

import polib

from trytond.pool import Pool
from trytond.tests.test_tryton import activate_module, with_transaction

__all__ = ['LOCALE', 'MODULES', 'key', 'template']

# The modules whose models this module extends are activated, too, if they are
# installed
MODULES = ['email_queue', 'inbound_email', 'party', 'web_user']
LOCALE = Path(__file__).resolve().parent.parent / 'locale'


def key(entry):
    return entry.msgctxt, entry.msgid, entry.msgid_plural


def template():
    "Return the texts to translate, as trytond exports them"
    pool = Pool()
    Set = pool.get('ir.translation.set', type='wizard')
    Translation = pool.get('ir.translation')
    # The views are in the pool only after it is initialised
    session, *_ = Set.create()
    Set(session).transition_set_()
    catalogue = polib.pofile(
        Translation.translation_export('en', 'email_queue').decode(),
        wrapwidth=78)
    for entry in catalogue:
        entry.msgstr = ''
        if entry.msgid_plural:
            # All languages of the module have two plural forms
            entry.msgstr_plural = {0: '', 1: ''}
    return catalogue


@with_transaction()
def update(path):
    "Write the catalogue anew, and keep the translations that it has"
    translations = {
        key(entry): entry for entry in polib.pofile(path)
        if entry.translated()}
    catalogue = template()
    for entry in catalogue:
        if translation := translations.get(key(entry)):
            entry.msgstr = translation.msgstr
            entry.msgstr_plural = translation.msgstr_plural
        else:
            print(f"{path.name}: {entry.msgctxt} {entry.msgid!r}")
    path.write_text(f'{catalogue}', 'utf-8')


if __name__ == '__main__':
    activate_module(MODULES)
    for path in sorted(LOCALE.glob('*.po')):
        update(path)
