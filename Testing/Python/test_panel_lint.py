"""What PythonQt, Slicer's Qt, takes otherwise than PySide6, and what freezes a window: none of it in the panel."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY

FILES = [
    *sorted((REPOSITORY / "COVIDLesionSeg" / "COVIDLesionSegLib" / "panel").glob("*.py")),
    REPOSITORY / "COVIDLesionSeg" / "COVIDLesionSeg.py",
]
# Not there in PythonQt, or not safe.
BANNED_OF_QT = {"Signal", "Slot", "Property", "QThread", "QThreadPool", "QRunnable"}
BANNED_MODULES = {"PySide6", "PyQt5", "PyQt6", "qtpy", "threading", "concurrent", "multiprocessing", "asyncio"}
# C++ virtuals that PySide6 and PythonQt disagree about, and calls that wait.
BANNED_CALLS = {"sizeHint", "minimumSizeHint", "exec", "processEvents", "sleep", "readline", "communicate"}
WAITING = "waitFor"
# One function asks, so that one place decides how; all else that opens windows is banned.
ASKS = ("messages.py", "confirm")
DIALOGS = {"exec_", "QMessageBox", "QFileDialog", "QInputDialog", "QProgressDialog", "QDialog", "messageBox"}
SHOWS_TEXT = {"setText", "setToolTip", "setTitle", "setWindowTitle", "setPlaceholderText", "Notice", "showText"}
# Names of what has methods that are called like some widget's property: items of lists, processes, the registry.
NO_WIDGETS = ("item", "process", "registry")


def qt_properties() -> set[str]:
    widgets = pytest.importorskip("PySide6.QtWidgets", exc_type=ImportError)
    names = set()
    for name in dir(widgets):
        meta = getattr(getattr(widgets, name), "staticMetaObject", None)
        if meta is not None:
            names |= {meta.property(index).name() for index in range(meta.propertyCount())}
    return names - {"sizeHint", "minimumSizeHint"}


# Before any test runs: PySide6 forgets the meta object of a class once it deletes one of its widgets.
PROPERTIES = qt_properties()


def qt_setters() -> set[str]:
    """Names of Qt's methods that set, add or insert: those that are called with something."""
    widgets = pytest.importorskip("PySide6.QtWidgets", exc_type=ImportError)
    names = {name for item in vars(widgets).values() if isinstance(item, type) for name in dir(item)}
    return {name for name in names if name.startswith(("set", "add", "insert"))}


SETTERS = qt_setters()


def root(node: ast.AST) -> str:
    """First name of a.b.c, or ""."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def is_widget_class(node: ast.AST) -> bool:
    if not isinstance(node, ast.Attribute):
        return False
    return root(node) in ("qt", "ctk") or (root(node) == "slicer" and node.attr.startswith("q"))


def faults(source: str, properties: set[str]) -> Iterator[str]:
    """What is wrong, one sentence each."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"imports {name}" for name in names if name.split(".")[0] in BANNED_MODULES | {"__feature__"})
            yield from ("imports with a star" for alias in node.names if alias.name == "*")
        elif isinstance(node, ast.ClassDef):
            yield from (f"{node.name} is a subclass of {ast.unparse(b)}" for b in node.bases if is_widget_class(b))
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            named = any(isinstance(side, ast.Attribute) and root(side) in ("qt", "ctk") for side in sides)
            number = any(isinstance(side, ast.Constant) and isinstance(side.value, int) for side in sides)
            if named and number:
                yield f"compares an enum with a number: {ast.unparse(node)}"
        elif isinstance(node, ast.Attribute) and root(node) == "qt" and node.attr in BANNED_OF_QT:
            yield f"uses qt.{node.attr}"
        elif isinstance(node, ast.arg) and node.arg == "_":
            yield "a parameter _ hides the translation"
        elif isinstance(node, ast.Call):
            yield from call_faults(node, properties)


def call_faults(node: ast.Call, properties: set[str]) -> Iterator[str]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    text = ast.unparse(node)
    is_method = isinstance(node.func, ast.Attribute)
    holder = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
    if is_method and not (node.args or node.keywords) and name in properties and not holder.endswith(NO_WIDGETS):
        yield f"calls a property: {text}"
    if is_method and (name in BANNED_CALLS or name.startswith(WAITING)):
        yield f"calls {name}"
    to_qt = (is_method and name in SETTERS) or (isinstance(node.func, ast.Attribute) and is_widget_class(node.func))
    if to_qt and node.keywords:
        yield f"passes arguments by keyword to Qt: {text}"
    if name in DIALOGS or (name.endswith("Display") and "slicer.util" in text):
        yield f"opens a dialog: {text}"
    first = node.args[0] if node.args else None
    if name == "connect" and isinstance(first, ast.Constant) and "(" not in str(first.value):
        yield f"connects a signal without its arguments: {text}"
    if name in SHOWS_TEXT:
        shown = node.args[1:2] if name == "showText" else node.args[:1]
        words = [a.value for a in shown if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        yield from (f"shows {word!r} untranslated" for word in words if word.strip())


SNIPPETS = {
    "button.text()": "calls a property",
    "self.ui.combo.count()": "calls a property",
    "process.state() == 0 or qt.QProcess.NotRunning == 0": "compares an enum",
    "0 != qt.Qt.Checked": "compares an enum",
    "class A(qt.QWidget): pass": "subclass",
    "class A(slicer.qMRMLWidget): pass": "subclass",
    "changed = qt.Signal()": "qt.Signal",
    "worker = qt.QThread()": "qt.QThread",
    "import threading": "imports threading",
    "from PySide6 import QtCore": "imports PySide6",
    "from slicer.ScriptedLoadableModule import *": "star",
    "dialog.exec()": "calls exec",
    "widget.sizeHint()": "sizeHint",
    "slicer.app.processEvents()": "processEvents",
    "process.waitForFinished()": "waitForFinished",
    "time.sleep(1)": "sleep",
    "slicer.util.errorDisplay('x')": "dialog",
    "qt.QMessageBox()": "dialog",
    "dialog.exec_()": "dialog",
    "button.connect('clicked', f)": "without its arguments",
    "layout.addWidget(button, stretch=1)": "by keyword",
    "qt.QLabel(parent=form)": "by keyword",
    "label.setText('Apply')": "untranslated",
    "note(Notice('Done'))": "untranslated",
    "f = lambda _: _('x')": "hides the translation",
}
GOOD = """
label.setText(_("Apply")); label.setText(""); button.connect("clicked(bool)", f); item.text(); combo.count
combo.itemText(0); process.state() == qt.QProcess.NotRunning; class_.enabled = False
"""


@pytest.mark.parametrize(("snippet", "fault"), SNIPPETS.items(), ids=str)
def test_the_lint_sees(snippet, fault):
    assert any(fault in found for found in faults(snippet, PROPERTIES)), list(faults(snippet, PROPERTIES))


def test_the_lint_lets_good_code_pass():
    assert not list(faults(GOOD, PROPERTIES))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_has_no_such_fault(path: Path):
    found = list(faults(path.read_text(encoding="utf-8"), PROPERTIES))
    if path.name == ASKS[0]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        (asking,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == ASKS[1]]
        allowed = list(faults(ast.unparse(asking), PROPERTIES))
        assert len(allowed) == 1 and "opens a dialog" in allowed[0]
        found = [fault for fault in found if fault not in allowed]
    assert not found


def test_slots_take_whatever_a_signal_brings():
    """PythonQt drops surplus arguments for functions only where it can count them: our slots take any number."""
    few = []
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        methods = {node.name: node.args for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        for call in ast.walk(tree):
            if not (
                isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "connect"
            ):
                continue
            if len(call.args) == 2 and isinstance(call.args[1], ast.Attribute) and root(call.args[1]) == "self":
                arguments = methods.get(call.args[1].attr)
                has_arguments = "()" not in str(getattr(call.args[0], "value", ""))
                if arguments is not None and has_arguments and not arguments.vararg and len(arguments.args) < 2:
                    few.append(f"{path.name}: {ast.unparse(call)}")
    assert not few
