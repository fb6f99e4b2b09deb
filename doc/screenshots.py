#!/usr/bin/env python3
# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Make the pictures of the documentation with the web client."""
import sys
from pathlib import Path

from shop import USER, answer, fill

from trytond.modules.email_queue.tests_web.webclient import Browser, Site

IMAGES = Path(__file__).resolve().parent / 'images'


def open_queue(browser, tab):
    browser.login()
    browser.open_menu('Administration', 'Email Queue')
    browser.open_tab(tab)
    browser.hide_menu()


def show_list(browser):
    open_queue(browser, 'All')


def show_form(browser):
    open_queue(browser, 'Failed')
    browser.open_row("Invoice 2026-0733")
    browser.open_tab('Delivery')


def show_message(browser):
    show_form(browser)
    browser.open_tab('Message')


def show_graph(browser):
    browser.login()
    browser.open_menu('Administration', 'Email Queue')
    browser.close_tab()
    browser.open_menu('Email Activity by Day')
    browser.hide_menu()
    browser.switch_view()
    browser.find('.graph')


def show_document(browser):
    browser.login(USER)
    browser.open_menu('Parties', 'Parties')
    browser.hide_menu()
    browser.open_row("Spielwaren Becker")
    browser.open_relate("Email Archives")
    browser.open_row("Invoice 2026-0733")


# The name and the size of a picture, and what to do for it
PICTURES = [
    ('list', (1600, 760), show_list),
    ('form', (1000, 720), show_form),
    ('message', (1000, 860), show_message),
    ('graph', (1000, 520), show_graph),
    ('document', (1000, 640), show_document),
    ]


def main():
    names = sys.argv[1:]
    IMAGES.mkdir(exist_ok=True)
    with Site(modules=['party']) as site:
        site.smtp.script = answer
        fill(site)
        for name, size, show in PICTURES:
            if names and name not in names:
                continue
            with Browser(site.url, *size) as browser:
                show(browser)
                path = IMAGES / f'{name}.png'
                browser.save(path)
                print(path.relative_to(Path.cwd()))


if __name__ == '__main__':
    main()
