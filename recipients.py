# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The texts of a record that tell what has become of each recipient.

``to_addrs`` are addresses joined by a comma and a blank, ``accepted`` is one
address a line, ``refused`` one a line with a blank and the server's words.
The one place that knows these forms.
"""
import re

_address_part = re.compile(r'(?:"(?:\\.|[^"\\])*"|[^,"])+')
# Of a line, up to the blank before the server's words
_line_address = re.compile(r'(?:"(?:\\.|[^"\\])*"|[^ "])+')
_token = re.compile(r'[^\s<>()\[\],;:"@]+(@[^\s<>()\[\],;:"@]+)?')
_words = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]+")
_parts = re.compile(r'[\w.+-]*\w')
_answer_code = re.compile(r'\d{3}(?: \d\.\d+\.\d+)?(?!\S)')
# No line that this module writes is longer
MASKED_LENGTH = 2000


def split_addresses(text):
    "Return the list of addresses that are joined by commas in ``text``"
    parts = map(str.strip, _address_part.findall(text or ''))
    return list(filter(None, parts))


def split_lines(text):
    "Return the lines of ``accepted`` or ``refused``"
    # splitlines would find more of them in an address than were written
    return text.split('\n') if text else []


def join_lines(text, lines):
    "Return ``text`` with more lines, None for none at all"
    return '\n'.join([*split_lines(text), *lines]) or None


def address_of(line):
    "Return the address that a line of ``accepted`` or ``refused`` is about"
    match = _line_address.match(line)
    return match[0] if match else line


def words_of(line):
    "Return what a line of ``refused`` says about its address"
    return line[len(address_of(line)) + 1:]


def remaining(to_addrs, accepted, refused):
    """Return the recipients that a message has still to go to.

    The arguments are the texts of a record.
    """
    recipients = split_addresses(to_addrs)
    if not (accepted or refused):
        return recipients
    lines = split_lines(refused)
    decided = {*split_lines(accepted), *map(address_of, lines)}
    return [
        a for a in recipients
        if a not in decided
        # What is no address can have a blank
        and not (address_of(a) != a
            and any(line.startswith(f'{a} ') for line in lines))]


def told(text, addresses):
    "Return by address the words that lines of ``text`` say about them"
    lines = split_lines(text)
    words = {address_of(line): words_of(line) for line in lines}
    for address in addresses:
        if address_of(address) != address:
            # What is no address can have a blank
            words.update(
                (address, line[len(address) + 1:])
                for line in lines if line.startswith(f'{address} '))
    return {a: words[a] for a in addresses if words.get(a)}


def account(to_addrs, accepted, words, reason=''):
    """Return what to say of an email that not all of its recipients got.

    :param words: what the server told, by address.
    :param reason: why the email is given up, where it is not these words.
    """
    recipients, got = split_addresses(to_addrs), split_lines(accepted)
    if len(recipients) == 1:
        return ': '.join(filter(None, [reason, words.get(recipients[0])]))
    lines = [f'{a} {words[a]}' for a in recipients if a in words]
    if got:
        lines.insert(0, reason)
        reason = f"delivered to {len(got)} of {len(recipients)} recipients"
    return '\n'.join(filter(None, [reason, *lines]))


def without(text, is_gone):
    "Return ``accepted`` or ``refused`` without the addresses that are gone"
    return '\n'.join(
        line for line in split_lines(text) if not is_gone(address_of(line)))


def masked(text, to_addrs, shown, name):
    """Return the words of a server without what tells hidden recipients.

    :param to_addrs: the recipients of the envelope.
    :param shown: the text of those that anyone may read.
    :param name: what takes the place of a line about another.
    """
    shown = {m[0].lower() for m in _token.finditer(shown) if m[1]}
    hidden = {
        a.lower() for a in split_addresses(to_addrs)
        if a.lower() not in shown}
    if not hidden:
        return text
    # Servers also write the part before the @ alone
    hidden_words = {w for a in hidden for w in [a, a.rpartition('@')[0]]}
    lines = []
    for line in text.split('\n'):
        address, _, answer = line.partition(' ')
        if address.lower() in hidden:
            code = _answer_code.match(answer)
            line = f'{name} {code[0] if code else ""}'.rstrip()
        else:
            line = _masked_line(line[:MASKED_LENGTH], hidden_words, shown)
        lines.append(line)
    return '\n'.join(lines)


def _masked_line(line, hidden_words, shown):
    line = _token.sub(
        lambda m: '…' if m[1] and m[0].lower() not in shown else m[0], line)
    # Only those that the line has, because a list has many of them
    found = {
        form for token in _words.findall(line.lower())
        for form in [token, token.strip('.'), *_parts.findall(token)]}
    present = sorted(hidden_words & found, key=len, reverse=True)
    if not present:
        return line
    pattern = '|'.join(map(re.escape, present))
    return re.sub(rf'(?<!\w)(?:{pattern})(?!\w)', '…', line, flags=re.I)
