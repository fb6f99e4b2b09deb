#!/usr/bin/env python3
# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Queue every message below a directory and print what would leave changed.

.venv/bin/python benchmarks/corpus.py DIRECTORY
"""
import sys
import time

from trytond.modules.email_queue.tests.corpus import compare, messages


def main():
    directory, = sys.argv[1:]
    count = changed = size = 0
    start = time.process_time()
    for name, data in messages(directory):
        count += 1
        size += len(data)
        if words := list(compare(data)):
            changed += 1
            print(name, '; '.join(words))
    seconds = time.process_time() - start
    print(f"{count} messages, {size / 2 ** 20:.1f} MiB in {seconds:.1f} s of "
        f"processor: {changed} would leave otherwise")
    return bool(changed)


if __name__ == '__main__':
    sys.exit(main())
