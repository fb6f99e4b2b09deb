# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""What the configuration says: the only reader of its section ``email_queue``.

The options are documented in doc/configuration.rst.
"""
import configparser
from collections import namedtuple
from typing import NamedTuple

import trytond.config as config
from trytond.i18n import gettext

from .address import Invalid, addresses
from .exceptions import SettingError

__all__ = [
    'InvalidSetting', 'Settings', 'at_start', 'full_name', 'named',
    'server_uri', 'servers', 'text']

SECTION = 'email_queue'
URI = 'uri_'
# The least value of options for which zero makes no sense
SMALLEST = 1e-3
TOO_LARGE = 1e9


class InvalidSetting(Invalid):
    """An option of the configuration has a value that makes no sense.

    The error has no words for users: see :class:`address.Invalid`.
    """

    def __init__(self, option, text):
        super().__init__(option, text, 'msg_setting_invalid')


def _number(type_, least=SMALLEST):
    def parse(text):
        value = type_(text)
        if not least <= value < TOO_LARGE:
            raise ValueError(text)
        return value

    return parse


def _flag(text):
    try:
        return configparser.RawConfigParser.BOOLEAN_STATES[text.lower()]
    except KeyError:
        raise ValueError(text)


def _choice(**values):
    def parse(text):
        try:
            return values[text]
        except KeyError:
            raise ValueError(text)

    return parse


def _address(text):
    address, = addresses('address', text)
    return address


class Option(NamedTuple):
    """How an option is read.

    ``parse`` is a function that returns the value for a text or raises a
    ``ValueError``; ``default`` is the value where the option is not set or is
    empty. Where ``per_server`` is set, each named server has an option of its
    own, such as ``rate_news`` for the server *news*, and ``rate`` is for the
    default server only.
    """
    parse: object
    default: object
    per_server: bool = False


OPTIONS = {
    'senders': Option(_number(int), 1, per_server=True),
    'connections': Option(_number(int), 2, per_server=True),
    'rate': Option(_number(float, least=0), 0, per_server=True),
    'messages_per_connection': Option(_number(int), 100),
    'recipients': Option(_number(int), 50),
    'run_time': Option(_number(float), 50),
    'timeout': Option(_number(int), 60),
    'data_timeout': Option(_number(int), 600),
    # The value "fail" was called "hold" up to version 8.2.0
    'uncertain': Option(
        _choice(retry='retry', fail='fail', hold='fail'), 'retry'),
    'retry_delay': Option(_number(float), 60),
    'give_up': Option(_number(float), 5),
    'max_attempts': Option(_number(int, least=0), 0),
    'health_age': Option(_number(float), 900),
    'health_failed': Option(_number(int, least=0), 0),
    'clean_days': Option(_number(float, least=0), 30),
    'clean_body_days': Option(_number(float, least=0), 7),
    'hold': Option(_flag, False),
    'redirect': Option(_address, ''),
    'return_path': Option(_address, '', per_server=True),
    }
# These options are read once, when the module is imported
OPTIONS_AT_START = {
    'capture': Option(_flag, False),
    'filestore': Option(_flag, False),
    'store_prefix': Option(str, None),
    }


class Settings(namedtuple(
        'Settings', OPTIONS, defaults=[o.default for o in OPTIONS.values()])):
    "The values of the options, by their names"
    __slots__ = ()

    @classmethod
    def read(cls, server=None):
        """Return the settings for a server.

        :param server: the name of the server, None for the default server.
        :raises SettingError: an option has a value that makes no sense.
        """
        values = {}
        for name, option in OPTIONS.items():
            of = server if option.per_server else None
            try:
                values[name] = _value(option, text(name, of))
            except ValueError as error:
                option, value = full_name(name, of), text(name, of)
                raise SettingError(
                    gettext('email_queue.msg_setting_invalid',
                        argument=option, value=value),
                    option=option, value=value) from error
        return cls(**values)


def at_start(name):
    """Return the value of an option of :data:`OPTIONS_AT_START`.

    :raises ValueError: the value makes no sense. Then trytond does not start.
    """
    try:
        return _value(OPTIONS_AT_START[name], text(name))
    except ValueError as error:
        raise ValueError(f"[{SECTION}] {name} = {text(name)}") from error


def _value(option, text):
    return option.parse(text) if text else option.default


def full_name(name, server=None):
    "Return the name of the option that a server has for ``name``"
    return f'{name}_{server}' if server else name


def text(name, server=None):
    """Return the text of an option, empty where the option is not set.

    :param server: the name of the server whose own option is read, None for
        the default server.
    """
    return config.get(SECTION, full_name(name, server)) or ''


def named(prefix):
    """Return the texts of the options whose names begin with ``prefix``.

    :return: a dict of the texts by the rest of the names, in their order,
        without empty texts.
    """
    if not config.has_section(SECTION):
        return {}
    texts = {
        option.removeprefix(prefix): config.get(SECTION, option)
        for option in sorted(config.options(SECTION))
        if option.startswith(prefix)}
    return {name: text for name, text in texts.items() if text}


def servers():
    """Return the names of the configured servers.

    The first is None, the default server, whose URI is in the section
    ``email``.
    """
    return [None, *filter(None, named(URI))]


def server_uri(name):
    "Return the URI of a server, None where it is not configured"
    if name is None:
        return config.get('email', 'uri')
    # configparser has the names of options in small letters. The name of a
    # server must be written in the same way.
    return named(URI).get(name) if name else None
