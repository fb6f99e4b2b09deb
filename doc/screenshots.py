#!/usr/bin/env python3
# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Make the pictures of the documentation with the clients of Tryton."""
import argparse
from pathlib import Path

import polib
from shop import USER, answer, fill

import trytond
from trytond.modules.email_queue.tests_web.site import ROOT, Site

IMAGES = Path(__file__).resolve().parent / 'images'
QUEUE = 'Administration', 'Email Queue'
FAILED = "Rechnung 2026-0733"
SIZE = 1366, 768


class Words(dict):
    "What the clients show in a language, by the English text of the programs"

    def __init__(self, language):
        modules = Path(trytond.__file__).parent / 'modules'
        for path in [
                modules.parent / 'ir', modules.parent / 'res',
                *modules.glob('party'), ROOT]:
            path = path / 'locale' / f'{language}.po'
            if path.exists():
                self.update(
                    (e.msgid, e.msgstr) for e in polib.pofile(str(path))
                    if e.msgstr)

    def __missing__(self, text):
        return text

    def path(self, *names):
        return [self[name] for name in names]


# The web client


def web_queue(browser, words, tab):
    browser.login()
    browser.open_menu(*words.path(*QUEUE))
    browser.open_tab(words[tab])


def web_list(browser, words):
    web_queue(browser, words, "All")


def web_form(browser, words):
    web_queue(browser, words, "Failed")
    browser.hide_menu()
    browser.open_row(FAILED)


def web_message(browser, words):
    web_form(browser, words)
    browser.open_tab(words["Message"])


def web_graph(browser, words):
    browser.login()
    browser.open_menu(*words.path(*QUEUE))
    browser.close_tab()
    browser.open_menu(words["Email Activity by Day"])
    browser.hide_menu()
    browser.switch_view()
    browser.find('.graph')


def web_hours(browser, words):
    browser.login()
    browser.open_menu(*words.path(*QUEUE))
    browser.close_tab()
    browser.open_menu(words["Email Activity by Hour"])
    browser.switch_view()
    browser.find('.graph')


def web_document(browser, words):
    browser.login(USER)
    browser.open_menu(words['Parties'], words['Parties'])
    browser.hide_menu()
    browser.open_row("Spielwaren Becker")
    browser.open_relate(words["Email Archives"])
    browser.open_row(FAILED)


def web_notification(browser, words):
    browser.login(USER)
    browser.click('.notification-badge')
    browser.find('.notification-label')


def web_wizard(browser, words):
    web_queue(browser, words, "All")
    browser.open_menu(words["Erase Address"])
    browser.type('.modal [name=address]', 'k.vogel@becker.example')
    browser.click('.modal button', words["Count"])
    browser.find('.modal [name=warning]')


# The desktop client


def desktop_list(desktop, words):
    desktop.menu(*words.path(*QUEUE))
    desktop.tab(words["All"])


def desktop_attention(desktop, words):
    desktop.menu(*words.path(*QUEUE))


def desktop_form(desktop, words):
    desktop.menu(*words.path(*QUEUE))
    desktop.tab(words["Failed"])
    desktop.open(FAILED)
    desktop.wait_for(state='failed')


def desktop_message(desktop, words):
    desktop_form(desktop, words)
    desktop.tab(words["Message"])


def desktop_other(desktop, words):
    desktop_form(desktop, words)
    desktop.tab(words["Other"])


def desktop_history(desktop, words):
    desktop_form(desktop, words)
    desktop.tab(words["History"])


def desktop_graph(desktop, words):
    desktop.menu(*words.path(*QUEUE, "Email Activity by Day"))
    desktop.wait(lambda: desktop.count(), "row")
    desktop.tool('switch')


def desktop_hours(desktop, words):
    desktop.menu(*words.path(*QUEUE, "Email Activity by Hour"))
    desktop.wait(lambda: desktop.count(), "row")
    desktop.tool('switch')


def desktop_wizard(desktop, words):
    desktop.menu(*words.path(*QUEUE, "Erase Address"))
    desktop.enter('address', 'k.vogel@becker.example')
    desktop.click(words["Count"])
    desktop.wait(lambda: desktop.values().get('warning'), "count")


def desktop_copy(desktop, words):
    desktop.menu(*words.path(*QUEUE, "Emails of a Copied Database"))
    desktop.find(words["Waiting Emails"])


# What to do for a picture, its name, and its size if that is not the usual one
WEB = [
    (web_list, 'list', SIZE),
    (web_form, 'form', (1000, 720)),
    (web_message, 'message', (1000, 720)),
    (web_graph, 'graph', (1000, 520)),
    (web_document, 'document', (1000, 640)),
    (web_notification, 'notification', (1000, 400)),
    ]
DESKTOP = [
    (desktop_list, 'desktop-list', SIZE),
    (desktop_message, 'desktop-message', SIZE),
    (desktop_graph, 'desktop-graph', SIZE),
    (desktop_wizard, 'desktop-wizard', SIZE),
    ]
# Pictures that the documentation does not show
MORE_WEB = [
    (web_hours, 'hours', SIZE),
    (web_wizard, 'wizard', (1000, 640)),
    ]
MORE_DESKTOP = [
    (desktop_form, 'desktop-form', SIZE),
    (desktop_attention, 'desktop-attention', SIZE),
    (desktop_other, 'desktop-other', SIZE),
    (desktop_history, 'desktop-history', SIZE),
    (desktop_hours, 'desktop-hours', SIZE),
    (desktop_copy, 'desktop-copy', SIZE),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('client', choices=['web', 'desktop'])
    parser.add_argument('names', nargs='*', help="of pictures, all by default")
    parser.add_argument(
        '--language', default='en', help="of the user, such as de")
    parser.add_argument(
        '--directory', type=Path, default=IMAGES,
        help="for the pictures; in another one there are more of them")
    args = parser.parse_args()

    pictures = WEB if args.client == 'web' else DESKTOP
    if args.directory != IMAGES:
        pictures = pictures + (
            MORE_WEB if args.client == 'web' else MORE_DESKTOP)
    args.directory.mkdir(parents=True, exist_ok=True)
    words = Words(args.language)
    with Site(modules=['party'], language=args.language) as site:
        site.smtp.script = answer
        fill(site)
        for show, name, size in pictures:
            if args.names and name not in args.names:
                continue
            path = args.directory / f'{name}.png'
            with open_client(args, site, size) as client:
                show(client, words)
                client.save(str(path))
            print(path)


def open_client(args, site, size):
    # Neither of the two needs the packages of the other
    if args.client == 'web':
        from trytond.modules.email_queue.tests_web.webclient import Browser
        return Browser(site.url, *size)
    from trytond.modules.email_queue.tests_desktop.desktopclient import Desktop
    return Desktop(site, 'admin', args.language, *size)


if __name__ == '__main__':
    main()
