# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""The texts of a record that tell what has become of each recipient.

``to_addrs`` has addresses joined by a comma and a blank. ``accepted`` has one
address a line, and ``refused`` an address, a blank and the server's words a
line. No other file knows these forms.
"""
import re

_address_part = re.compile(r'(?:"(?:\\.|[^"\\])*"|[^,"])+')
# The address at the beginning of a line, up to the blank before the words
_line_address = re.compile(r'(?:"(?:\\.|[^"\\])*"|[^ "])+')
_token = re.compile(r'[^\s<>()\[\],;:"@]+(@[^\s<>()\[\],;:"@]+)?')
_words = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]+")
_parts = re.compile(r'[\w.+-]*\w')
_answer_code = re.compile(r'\d{3}(?: \d\.\d+\.\d+)?(?!\S)')
# A line is cut to this length before it is searched, because the module writes
# no longer lines
MASKED_LENGTH = 2000


def split_addresses(text):
    "Return the list of addresses that are joined by commas in ``text``"
    text = text or ''
    if ',' in text or '"' in text:
        parts = _address_part.findall(text)
    else:
        # Most emails have one recipient
        parts = [text]
    return list(filter(None, map(str.strip, parts)))


def split_lines(text):
    "Return the lines of ``accepted`` or ``refused``"
    # Not splitlines, because an address may contain other line separators
    return text.split('\n') if text else []


def join_lines(text, lines):
    "Return ``text`` with further lines, None if there is no line at all"
    return '\n'.join([*split_lines(text), *lines]) or None


def address_of(line):
    "Return the address that a line of ``accepted`` or ``refused`` is about"
    match = _line_address.match(line)
    return match[0] if match else line


def answer_lines(answers):
    "Yield the lines for a dict of words by address; the words can be empty"
    for address, words in answers.items():
        yield f'{address} {words}' if words else address


def answers(text, addresses):
    """Yield the address and the words of each line of ``refused``.

    :param addresses: the recipients of the email. They are needed to find a
        recipient that is no valid address, because it can have a blank.
    """
    odd = [a for a in addresses if address_of(a) != a]
    for line in split_lines(text):
        address = next(
            (a for a in odd if line == a or line.startswith(f'{a} ')),
            None) or address_of(line)
        yield address, line[len(address) + 1:]


def remaining(to_addrs, accepted, refused):
    """Return the list of recipients to whom an email still has to be sent.

    The arguments are the texts of the record.
    """
    recipients = split_addresses(to_addrs)
    if not (accepted or refused):
        return recipients
    decided = set(split_lines(accepted))
    if refused:
        decided.update(
            address for address, _ in answers(refused, recipients))
    return [a for a in recipients if a not in decided]


def words_by_address(text, addresses):
    "Return a dict of the words about ``addresses`` in the lines of ``text``"
    words = dict(answers(text, addresses))
    return {a: words[a] for a in addresses if a in words}


def account(to_addrs, words):
    """Return the words of a server about recipients, None for no words.

    For an email to one recipient the result is the words alone, for other
    emails a line for each address. It is None where all recipients are in
    ``words`` without any words, because then the reason of the email says all.

    :param words: a dict of words by address; the words can be empty.
    """
    recipients = split_addresses(to_addrs)
    words = {a: words[a] for a in recipients if a in words}
    if len(words) == len(recipients) and not any(words.values()):
        return None
    if len(recipients) == 1:
        return words.get(recipients[0])
    return join_lines(None, answer_lines(words))


def delivered(to_addrs, accepted):
    """Return to how many of how many recipients an email was delivered.

    :return: two numbers, None where it was delivered to nobody or to all.
    """
    recipients, got = split_addresses(to_addrs), split_lines(accepted)
    if 0 < len(got) < len(recipients):
        return len(got), len(recipients)


def without(text, is_gone):
    "Return ``accepted`` or ``refused`` without the addresses that are gone"
    return '\n'.join(
        line for line in split_lines(text) if not is_gone(address_of(line)))


def masked(text, to_addrs, shown, name):
    """Return the words of a server without hidden recipients.

    :param to_addrs: the recipients of the envelope.
    :param shown: the text of the recipients that everybody may read.
    :param name: the text that replaces the address of a hidden recipient.
    """
    shown = {m[0].lower() for m in _token.finditer(shown) if m[1]}
    hidden = {
        a.lower() for a in split_addresses(to_addrs)
        if a.lower() not in shown}
    if not hidden:
        return text
    # Servers also write the part before the @ without the rest
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
    # Only hidden words that are in the line, because an email can have
    # thousands of recipients
    found = {
        form for token in _words.findall(line.lower())
        for form in [token, token.strip('.'), *_parts.findall(token)]}
    present = sorted(hidden_words & found, key=len, reverse=True)
    if not present:
        return line
    pattern = '|'.join(map(re.escape, present))
    return re.sub(rf'(?<!\w)(?:{pattern})(?!\w)', '…', line, flags=re.I)
