#!/usr/bin/env python3
# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Build sdist and wheel in dist/, and check that they are whole."""
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path, PurePath

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / 'dist'
PACKAGE = Path('trytond/modules/email_queue')
MODULE_FILES = [
    '*.py', '*.xml', 'tryton.cfg', 'view/*.xml', 'locale/*.po', 'icons/*.svg',
    'tests/*.py', 'tests/*.rst', 'tests/*.json', 'tests/*.pem',
    'tests/notices/*.eml']
SOURCE_FILES = MODULE_FILES + [
    'CHANGELOG', 'COPYRIGHT', 'LICENSE', 'MANIFEST.in', 'Makefile',
    'README.rst', 'pyproject.toml', 'setup.cfg', '.ci/*', 'benchmarks/*',
    'bin/*', 'demo/*.py', 'doc/*.py', 'doc/*.rst', 'doc/usage/*.rst',
    'doc/images/*.png', 'tests_web/*.py', 'tests_desktop/*.py']


def find(patterns):
    "Return the files of the checkout that git does not ignore"
    output = subprocess.check_output([
            'git', 'ls-files', '--cached', '--others', '--exclude-standard',
            '-z', '--', *(f':(glob){pattern}' for pattern in patterns)],
        cwd=ROOT, text=True)
    return {
        name for name in output.split('\0') if name and (ROOT / name).exists()}


def build():
    shutil.rmtree(DIST, ignore_errors=True)
    # Without options it builds the wheel from the sdist
    process = subprocess.run(
        [sys.executable, '-m', 'build', '--outdir', DIST, ROOT],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if process.returncode:
        sys.exit(process.stdout)
    sdist, = DIST.glob('*.tar.gz')
    wheel, = DIST.glob('*.whl')
    return sdist, wheel


def check_sdist(path):
    with tarfile.open(path) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    check_names(path, names, find(SOURCE_FILES))


def check_wheel(path):
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    expected = {str(PACKAGE / name) for name in find(MODULE_FILES)}
    expected.remove(str(PACKAGE / 'setup.py'))
    check_names(path, names, expected)
    scripts = {
        PurePath(name).name for name in names if '.data/scripts/' in name}
    check_names(path, scripts, {PurePath(n).name for n in find(['bin/*'])})
    if others := {
            name for name in names - expected
            if not name.partition('/')[0].endswith(('.dist-info', '.data'))}:
        sys.exit(f"{path.name} holds also: {', '.join(sorted(others))}")


def check_names(path, names, expected):
    if missing := expected - names:
        sys.exit(f"{path.name} lacks: {', '.join(sorted(missing))}")
    print(f"{path.name}: all {len(expected)} files are in it")


def check_metadata(*paths):
    "Check the metadata, and that a package index can render the README"
    subprocess.run(
        [sys.executable, '-m', 'twine', 'check', '--strict', *paths],
        check=True)


def check_installed(wheel):
    "Check that trytond finds what a clean environment has from the wheel"
    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        venv.create(directory / 'venv', with_pip=True)
        bin_ = directory / 'venv' / 'bin'
        subprocess.run(
            [bin_ / 'pip', 'install', '-qq', '--disable-pip-version-check',
                wheel],
            check=True)

        database = directory / 'package.sqlite'
        database.touch()
        password = directory / 'password'
        password.write_text('package')
        environ = {
            name: value for name, value in os.environ.items()
            if not name.startswith(('TRYTOND_', 'PYTHONPATH'))}
        environ.update(
            TRYTOND_DATABASE__URI='sqlite://',
            TRYTOND_DATABASE__PATH=str(directory),
            TRYTONPASSFILE=str(password))
        subprocess.run(
            [bin_ / 'trytond-admin', '-d', 'package', '-u', 'email_queue',
                '--email', 'admin@example.com'],
            check=True, cwd=directory, env=environ)
        with sqlite3.connect(database) as connection:
            state, = connection.execute(
                "SELECT state FROM ir_module WHERE name = 'email_queue'"
                ).fetchone()
        connection.close()
        if state != 'activated':
            sys.exit(f"The module is {state} after trytond-admin")
    print(f"{wheel.name}: activated in a clean environment")


def main():
    sdist, wheel = build()
    check_sdist(sdist)
    check_wheel(wheel)
    check_metadata(sdist, wheel)
    check_installed(wheel)


if __name__ == '__main__':
    main()
