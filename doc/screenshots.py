#!/usr/bin/env python3
# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Make the pictures of the documentation with the web client."""
from pathlib import Path

from shop import answer, fill

from trytond.modules.email_queue.tests_web.webclient import Browser, Site

IMAGES = Path(__file__).resolve().parent / 'images'


def open_queue(browser, tab):
    browser.open_menu('Administration', 'Email Queue')
    browser.open_tab(tab)


def show_list(browser):
    open_queue(browser, 'All')
    browser.hide_menu()


def show_form(browser):
    open_queue(browser, 'Failed')
    browser.open_row("Invoice 2026-0733")
    browser.open_tab('Delivery')


def show_message(browser):
    show_form(browser)
    browser.open_tab('Message')


# The name and the size of a picture, and what to do for it
PICTURES = [
    ('list', (1440, 760), show_list),
    ('form', (1200, 780), show_form),
    ('message', (1200, 900), show_message),
    ]


def main():
    IMAGES.mkdir(exist_ok=True)
    with Site(modules=['party']) as site:
        site.smtp.script = answer
        fill(site)
        for name, size, show in PICTURES:
            with Browser(site.url, *size) as browser:
                browser.login()
                show(browser)
                path = IMAGES / f'{name}.png'
                browser.save(path)
                print(path.relative_to(Path.cwd()))


if __name__ == '__main__':
    main()
