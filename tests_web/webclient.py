# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Tryton's web client on a database with the module, in a real browser."""
import os
import re
import shutil
import tempfile

from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException, ElementNotInteractableException,
    StaleElementReferenceException)
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from trytond.modules.email_queue.tests_web.site import (
    DATABASE, PASSWORD, ROOT, Site, wait)

__all__ = ['Browser', 'Site']

# What the browser shows when something goes wrong
FAILURE = ROOT / '.cache' / 'web.png'
# What the client requests, although it works without it
OPTIONAL = re.compile(r'/(locale/en(_US)?\.json|custom\.(css|js)) ')
FIND = """
    const [selector, text] = arguments;
    return [...document.querySelectorAll(selector)].filter(element =>
        element.offsetParent && element.textContent.trim().startsWith(text));
    """
VALUES = """
    return Object.fromEntries(
        [...document.querySelectorAll('.form [name]')]
        .filter(element => element.offsetParent)
        .map(element => [
            element.name,
            element.selectedOptions ?
                element.selectedOptions[0]?.text : element.value]));
    """


class Browser:
    "A browser with the web client; every method waits for its result"

    def __init__(self, url, width=1280, height=800):
        self.url = url
        self.size = width, height

    def __enter__(self):
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which('chromium')
        for argument in [
                '--headless=new',
                '--no-sandbox',  # root cannot have a sandbox
                '--disable-dev-shm-usage',
                '--hide-scrollbars',
                '--lang=en-US',
                ]:
            options.add_argument(argument)
        options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
        # The browser leaves files behind
        self.directory = tempfile.TemporaryDirectory(
            prefix='email_queue-', ignore_cleanup_errors=True)
        self.driver = webdriver.Chrome(
            options=options,
            service=webdriver.ChromeService(
                shutil.which('chromedriver'),
                env={**os.environ, 'TMPDIR': self.directory.name}))
        # Otherwise the size of the window would include its frame
        self.driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', {
                'width': self.size[0], 'height': self.size[1],
                'deviceScaleFactor': 1, 'mobile': False})
        return self

    def __exit__(self, exc_type, *exc_info):
        if exc_type:
            self.driver.save_screenshot(FAILURE)
        self.driver.quit()
        self.directory.cleanup()

    @property
    def errors(self):
        "Return the errors in the console since the last call"
        return [
            entry['message'] for entry in self.driver.get_log('browser')
            if entry['level'] == 'SEVERE'
            and not OPTIONAL.search(entry['message'])]

    def wait(self, condition, what):
        "Wait until the condition holds, and return its value"
        return wait(condition, what, [
                ElementClickInterceptedException,
                ElementNotInteractableException,
                StaleElementReferenceException,
                ])

    def elements(self, selector, text=''):
        "Return the visible elements whose text begins with this"
        return self.driver.execute_script(FIND, selector, text)

    def find(self, selector, text=''):
        return self.wait(
            lambda: self.elements(selector, text), f"{selector} {text}")[0]

    def click(self, selector, text=''):
        self.wait(
            lambda: [e.click() for e in self.elements(selector, text)[:1]],
            f"{selector} {text}")

    def type(self, selector, keys):
        self.wait(
            lambda: [e.send_keys(keys) for e in self.elements(selector)[:1]],
            selector)

    def wait_until_idle(self):
        "Wait until the client no longer waits for anything"
        self.wait(
            lambda: self.driver.execute_script(
                "return !jQuery.active && !jQuery(':animated').length "
                "&& !document.getAnimations().length"),
            "end of the requests")

    def login(self, user='admin'):
        self.driver.get(f'{self.url}#{DATABASE}')
        # The client empties the field when it has loaded
        self.find('#login')
        self.wait_until_idle()
        self.type('#login', user)
        self.click('button[type=submit]', "Login")
        self.type('input[type=password]', PASSWORD + Keys.ENTER)
        self.find('#menu')
        self.wait_until_idle()

    def open_menu(self, *path):
        last = None

        def click():
            nonlocal last
            rows = self.elements('#menu tr')
            # An entry can have the same name as the entry above it
            for row in rows[rows.index(last) + 1 if last else 0:]:
                if row in self.elements('#menu tr', name):
                    row.click()
                    last = row
                    return True
        for name in path:
            self.wait(click, f"menu {name}")
        self.wait_until_idle()

    def hide_menu(self):
        self.click('[data-toggle=menu]')

    def open_tab(self, name):
        self.click('.nav-tabs a', name)
        self.wait_until_idle()

    def close_tab(self):
        self.click('#tablist .active .close')
        self.wait_until_idle()

    def switch_view(self):
        self.click('#switch_')
        self.wait_until_idle()

    def open_relate(self, name):
        self.click('#relate')
        self.click('.dropdown-menu a', name)
        self.wait_until_idle()

    def open_action(self, name):
        self.click('#action')
        self.click('.dropdown-menu a', name)
        self.wait_until_idle()

    def select_row(self, text):
        def check():
            for row in self.elements('.tree tbody tr'):
                if text in row.text:
                    row.find_element('css selector', '[type=checkbox]').click()
                    return True
        self.wait(check, f"row {text}")

    def open_row(self, text):
        "Open the form of the row of the list with that text"
        def double_click():
            for cell in self.elements('.tree tbody .widget', text)[:1]:
                ActionChains(self.driver).double_click(cell).perform()
                return True
        self.wait(double_click, f"row {text}")
        self.find('.form')
        self.wait_until_idle()

    def save(self, path):
        "Save a picture of the page, with nothing in focus"
        self.driver.execute_script('document.activeElement.blur()')
        self.wait_until_idle()
        self.driver.save_screenshot(path)

    @property
    def values(self):
        "Return what the fields of the form show"
        return self.driver.execute_script(VALUES)

    def wait_for(self, **values):
        self.wait(
            lambda: values.items() <= self.values.items(),
            f"form with {values}")
