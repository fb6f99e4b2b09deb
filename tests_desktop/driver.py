#!/usr/bin/env python3
# This file is part of email_queue.  The COPYRIGHT file at the top level of
# this repository contains the full copyright notices and license terms.
"""Tryton's desktop client, which does what standard input says.

A line is a JSON list of a command and its arguments, the answer on the
standard output ``[true, value]`` or ``[false, error]``. The commands run in
the main loop of the client, also while one of its dialogs waits, and use the
widgets that a user uses.

It runs with the interpreter and the packages of the client, so it imports
nothing of this module.
"""
import json
import os
import shutil
import sys
import threading
import traceback
from functools import partial

import gi

gi.require_version('Gtk', '3.0')
gi.require_version('Gdk', '3.0')
from gi.repository import Gdk, Gio, GLib, Gtk  # noqa: E402

# Before the client is imported, which prints to the standard output
answers = os.fdopen(os.dup(1), 'w', buffering=1)
os.dup2(2, 1)

from tryton import client, common  # noqa: E402
from tryton.config import CONFIG  # noqa: E402
from tryton.gui import Main  # noqa: E402

errors = []


def record_error(title, details):
    "Keep an error of the client itself, and do not show it"
    errors.append(f'{title}\n{details}')


def descendants(widget, wanted=Gtk.Widget.get_mapped):
    "Yield the widget and all widgets in it, without the unwanted ones"
    if not wanted(widget):
        return
    yield widget
    if isinstance(widget, Gtk.Container):
        children = []
        widget.forall(children.append)
        for child in children:
            yield from descendants(child, wanted)


# With widgets that are not on the display, such as a tab of a narrow notebook
all_of = partial(descendants, wanted=lambda widget: True)


def windows():
    "Return the windows; the window that waits for the user comes first"
    mapped = [w for w in Gtk.Window.list_toplevels() if w.get_mapped()]
    return sorted(
        mapped, key=lambda w: not (isinstance(w, Gtk.Dialog) or (
                isinstance(w, Gtk.Window) and w.get_modal())))


def widgets(Class=Gtk.Widget):
    for window in windows():
        for widget in descendants(window):
            if isinstance(widget, Class):
                yield widget


def text_of(widget):
    if isinstance(widget, Gtk.Entry):
        return widget.get_text()
    if isinstance(widget, Gtk.TextView):
        buffer = widget.get_buffer()
        return buffer.get_text(*buffer.get_bounds(), True)
    if isinstance(widget, (Gtk.Label, Gtk.Button, Gtk.ToolButton)):
        label = (widget.get_text() if isinstance(widget, Gtk.Label)
            else widget.get_label())
        return (label or '').replace('_', '')
    return ''


def page():
    return Main().get_page()


def menu_view():
    if not Main().menu_screen:
        raise LookupError("no menu")
    return Main().menu_screen.current_view.treeview


def screen():
    "Return the screen of the dialog, or else of the tab"
    holders = [h for h in [page(), Main()] if h]
    dialogs = [d for h in holders for d in reversed(h.dialogs)]
    found = next(iter([*dialogs, *filter(None, [page()])]), None)
    if not getattr(found, 'screen', None) or not found.screen.current_view:
        raise LookupError("nothing is open")
    return found.screen


def rows(model, parent=None):
    iter_ = model.iter_children(parent)
    while iter_:
        yield iter_, model.get_value(iter_, 0)
        iter_ = model.iter_next(iter_)


def value_of(record, name):
    field = record.group.fields[name]
    record[name]
    return str(field.get_client(record) or '')


class Commands:
    """Each method returns what JSON can hold, and raises LookupError until it
    can
    """

    def password(self, password):
        "Answer the question for the password"
        for entry in widgets(Gtk.Entry):
            if not entry.get_visibility():
                entry.set_text(password)
                entry.activate()
                return
        raise LookupError("no question for a password")

    def menu(self, *names):
        view = menu_view()
        model, parent = view.get_model(), None
        for name in names:
            for iter_, record in rows(model, parent):
                if value_of(record, 'name') == name:
                    break
            else:
                raise LookupError(f"no menu {name}")
            path = model.get_path(iter_)
            if name == names[-1]:
                view.expand_to_path(path)
                view.set_cursor(path, None, False)
                column = view.get_column(0)
                GLib.idle_add(view.row_activated, path, column)
            else:
                view.expand_row(path, False)
            parent = iter_

    def menu_names(self, *names):
        view = menu_view()
        model, parent = view.get_model(), None
        for name in names:
            for iter_, record in rows(model, parent):
                if value_of(record, 'name') == name:
                    view.expand_row(model.get_path(iter_), False)
                    parent = iter_
                    break
        return [value_of(record, 'name') for _, record in rows(model, parent)]

    def toggle_menu(self):
        Main().menu_toggle()

    def tab(self, name):
        "Open the page of a notebook whose tab begins with the text"
        for notebook in widgets(Gtk.Notebook):
            for number in range(notebook.get_n_pages()):
                child = notebook.get_nth_page(number)
                label = notebook.get_tab_label(child)
                found = [text_of(w) for w in all_of(label)]
                if child.get_visible() and any(
                        t.strip().startswith(name) for t in found):
                    notebook.set_current_page(number)
                    return
        raise LookupError(f"no tab {name}")

    def click(self, text):
        for widget in widgets((Gtk.Button, Gtk.ToolButton)):
            found = [text_of(w) for w in descendants(widget)]
            if widget.get_sensitive() and text in found:
                GLib.idle_add(activate, widget)
                return
        raise LookupError(f"no button {text}")

    def tool(self, name):
        "Use the button of the tool bar that has this name in the client"
        tab = page()
        GLib.idle_add(
            activate, tab.buttons.get(name) or tab.menu_buttons[name])

    def choose(self, tool, text):
        "Choose an entry of the menu of a button of the tool bar"
        button = page().buttons[tool]
        menu = button._menu if hasattr(button, '_menu') else button.get_menu()
        button.emit('show-menu') if hasattr(button, 'get_menu') else None
        for item in menu.get_children():
            if item.get_label() and item.get_label().replace('_', '') == text:
                GLib.idle_add(activate, item)
                return
        raise LookupError(f"no entry {text} of {tool}")

    def search(self, text):
        container = screen().screen_container
        container.set_text(text)
        GLib.idle_add(container.do_search)

    def select(self, *texts):
        view = screen().current_view.treeview
        selection = view.get_selection()
        selection.unselect_all()
        for text in texts:
            iter_ = find_row(view.get_model(), text)
            selection.select_iter(iter_)

    def open(self, text):
        "Open the row of the list that shows the text"
        view = screen().current_view.treeview
        iter_ = find_row(view.get_model(), text)
        path = view.get_model().get_path(iter_)
        view.set_cursor(path, None, False)
        GLib.idle_add(
            view.row_activated, path, view.get_columns()[1])

    def count(self):
        return len(screen().current_view.treeview.get_model())

    def columns(self):
        "Return the titles and widths of the visible columns of the list"
        found = []
        for column in screen().current_view.treeview.get_columns():
            widget = column.get_widget()
            labels = [
                text_of(w) for w in (all_of(widget) if widget else [])
                if isinstance(w, Gtk.Label)]
            if column.get_visible() and labels:
                found.append([labels[0], column.get_width()])
        return found

    def enter(self, name, text):
        "Type into a field of the form"
        for widget in screen().current_view.widgets[name]:
            widget.entry.set_text(text)
            widget.set_value()
            screen().current_view.screen.current_record.validate()

    def values(self):
        "Return what the fields of the form show"
        record = screen().current_record
        view = screen().current_view
        return {
            name: value_of(record, name) for name in view.widgets
            if name in record.group.fields}

    def texts(self):
        return list(filter(None, map(text_of, widgets())))

    def cut(self):
        "Return the labels of which only a part is visible"
        return [
            w.get_text() for w in widgets(Gtk.Label)
            if w.get_layout().is_ellipsized()]

    def close(self):
        "Close the tab, which must not ask whether to save"
        if page().screen.modified():
            raise RuntimeError(str([
                        (name, record.value.get(name))
                        for record in page().screen.group
                        for name in record.modified_fields]))
        self.tool('win_close')

    def open_attachment(self, name):
        "Click the icon that opens a file of the list of attachments"
        for widget in screen().current_view.widgets['attachments']:
            view = widget.screen.current_view.treeview
            iter_ = find_row(view.get_model(), name, widget.screen)
            path = view.get_model().get_path(iter_)
            for column in view.get_columns():
                for cell in column.get_cells():
                    if type(cell).__name__ == 'CellRendererClickablePixbuf':
                        GLib.idle_add(cell.emit, 'clicked', str(path))
                        return
        raise LookupError(f"no attachment {name}")

    def hidden(self):
        """Return how much of the window of a wizard is hidden until it is
        scrolled
        """
        dialog, = Main().dialogs or page().dialogs
        adjustment = dialog.scrolledwindow.get_vadjustment()
        return max(adjustment.get_upper() - adjustment.get_page_size(), 0)

    def errors(self):
        found = list(errors)
        errors.clear()
        return found

    def picture(self, path):
        root = Gdk.get_default_root_window()
        # Where the field shows no help
        pointer = root.get_display().get_default_seat().get_pointer()
        pointer.warp(root.get_screen(), root.get_width() - 1, 0)
        pixels = Gdk.pixbuf_get_from_window(
            root, 0, 0, root.get_width(), root.get_height())
        pixels.savev(path, 'png', [], [])

    def unfocus(self):
        window = windows()[0]
        window.set_focus(None)

    def quit(self):
        Main().quit()


def activate(widget):
    widget.emit('activate' if isinstance(widget, Gtk.MenuItem) else 'clicked')


def find_row(model, text, of=None):
    for iter_, record in rows(model):
        view = (of or screen()).current_view
        for name in view.get_fields():
            if text in value_of(record, name):
                return iter_
    raise LookupError(f"no row {text}")


def current_event(current=Gtk.get_current_event):
    "Return an event also if a command does what a user would do"
    return current() or Gdk.Event.new(Gdk.EventType.KEY_PRESS)


def open_file(uri, context=None):
    "Keep what would be given to a program of the desktop"
    path, _ = GLib.filename_from_uri(uri)
    shutil.copy(path, os.environ['OPENED'])
    return True


def run(line):
    name, *arguments = json.loads(line)
    try:
        answer = True, getattr(commands, name)(*arguments)
    except Exception as error:
        answer = False, traceback.format_exc()
        if isinstance(error, LookupError):
            answer = False, f'LookupError: {error!r}'
    answers.write(json.dumps(answer) + '\n')


def listen():
    for line in sys.stdin:
        GLib.idle_add(run, line)
    GLib.idle_add(Main().quit)


commands = Commands()


def main():
    common.error = common.common.error = record_error
    Gtk.get_current_event = current_event
    Gio.AppInfo.launch_default_for_uri = open_file
    # Nothing is asked of the network, and nothing is remembered
    CONFIG.defaults.update({
            'client.check_version': False,
            'client.save_tree_width': False,
            'client.save_tree_state': False,
            })
    threading.Thread(target=listen, daemon=True).start()
    client.main()


if __name__ == '__main__':
    main()
