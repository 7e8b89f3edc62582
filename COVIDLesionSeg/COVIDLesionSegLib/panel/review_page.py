"""Doubtful labels: jump there, decide; and several raters of one case: agreement, consensus."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import qt

from .. import mrml
from ..worker import Reply
from .case_work import CaseWork
from .forms import DOUBLE_CLICK_S
from .gate_text import comparisonHtml
from .notices import Notice, attempt
from .store_client import StoreClient
from .text import _

_ID = qt.Qt.UserRole


class ReviewPage:
    """Fills the parts of the form about doubtful labels and about raters.

    Args:
        store: the store.
        work: the case that is open.
        ui: the form's widgets.
        note: shows a :class:`.notices.Notice`.
    """

    def __init__(self, store: StoreClient, work: CaseWork, ui: Any, note: Callable[[Notice], None]) -> None:
        self._store, self._work, self._ui, self._note = store, work, ui, note
        self._items: list[Mapping[str, Any]] = []
        self._isCompared = False
        # the row that was clicked last, and when
        self._jumped = -1, 0.0
        # a double click is a click, and activates the item as the return key does
        for signal in ("itemClicked(QListWidgetItem*)", "itemActivated(QListWidgetItem*)"):
            ui.reviewList.connect(signal, lambda *_ignored: self._onItem())
        ui.reviewList.connect("currentRowChanged(int)", lambda *_ignored: self._showButtons())
        ui.decidedCheck.connect("toggled(bool)", lambda *_ignored: self.show())
        ui.rightButton.connect("clicked(bool)", lambda *_ignored: self.decide("right"))
        ui.fixButton.connect("clicked(bool)", lambda *_ignored: self.decide("fix"))
        ui.agreementButton.connect("clicked(bool)", self.onAgreement)
        ui.consensusButton.connect("clicked(bool)", self.onConsensus)
        ui.latestButton.connect("clicked(bool)", self.onLatest)
        ui.raterList.connect("currentRowChanged(int)", lambda *_ignored: self._showButtons())
        store.changed.connect(self.show)
        self.show()

    def close(self) -> None:
        """Listen no more."""
        self._store.changed.disconnect(self.show)

    def show(self) -> None:
        """Show both lists."""
        ui, all_shown = self._ui, bool(self._ui.decidedCheck.checked)
        self._items = [i for i in self._store.overview.get("review", ()) if all_shown or not i["decision"]]
        _fill(ui.reviewList, [(f"{item['case']}/{item['slice']}", _itemText(item)) for item in self._items])
        several = [case for case in self._store.cases.values() if len(case["raters"]) > 1]
        _fill(ui.raterList, [(case["id"], _raterText(case)) for case in several])
        ui.raterList.setVisible(bool(several))
        self._showButtons()

    def _showButtons(self) -> None:
        ui = self._ui
        chosen = 0 <= ui.reviewList.currentRow < len(self._items)
        ui.rightButton.setEnabled(chosen)
        ui.fixButton.setEnabled(chosen)
        ui.agreementButton.setEnabled(ui.raterList.count > 0)
        ui.agreementBrowser.setVisible(self._isCompared)
        for button in (ui.consensusButton, ui.latestButton):
            button.setEnabled(ui.raterList.currentRow >= 0)

    # ---- doubtful labels --------------------------------------------------------------------------------------------

    def jump(self) -> None:
        """Open the chosen item's case and bring all views to its slice."""
        row = self._ui.reviewList.currentRow
        if 0 <= row < len(self._items):
            item = self._items[row]
            self._try(lambda: self._work.openCase(item["case"], then=lambda: mrml.jumpTo(item["ras"])))

    def _onItem(self) -> None:
        now, row = time.monotonic(), self._ui.reviewList.currentRow
        if row != self._jumped[0] or now - self._jumped[1] > DOUBLE_CLICK_S:
            self._jumped = row, now
            self.jump()

    def jumpToNext(self) -> None:
        """Choose the next item, round and round, and jump there."""
        if self._items:
            self._ui.reviewList.setCurrentRow((self._ui.reviewList.currentRow + 1) % len(self._items))
            self.jump()

    def decide(self, decision: str) -> None:
        """Remember what is thought of the chosen item."""
        row = self._ui.reviewList.currentRow
        if not 0 <= row < len(self._items):
            return
        item = self._items[row]
        values = {"case": item["case"], "slice": item["slice"], "decision": decision, "by": self._store.rater}
        self._try(lambda: self._store.ask("review_decide", values))

    # ---- raters -----------------------------------------------------------------------------------------------------

    def onAgreement(self, *_ignored: Any) -> None:
        """Compare the raters of all cases."""

        def compared(reply: Reply) -> None:
            self._ui.agreementBrowser.setHtml(comparisonHtml(reply.values["rows"], reply.values["summary"]))
            self._isCompared = True
            self._showButtons()

        self._try(lambda: self._store.ask("store_agreement", {}, compared, shown=True))

    def onConsensus(self, *_ignored: Any) -> None:
        """Let the consensus of the chosen case train."""
        case = _chosen(self._ui.raterList)

        def made(reply: Reply) -> None:
            volume = f"{reply.values['made'][case]:.1f} mL"
            text = _("The consensus of {case} ({volume}) trains from now on.").format(case=case, volume=volume)
            self._note(Notice(text))

        self._try(lambda: self._store.ask("case_consensus", {"cases": [case]}, made, shown=True))

    def onLatest(self, *_ignored: Any) -> None:
        """Let the last revision of the chosen case train."""
        values = {"case": _chosen(self._ui.raterList), "act": "label", "text": "latest"}
        self._try(lambda: self._store.ask("case_act", values))

    def _try(self, action: Callable[[], Any]) -> None:
        attempt(action, self._note)


def _fill(widget: Any, rows: list[tuple[str, str]]) -> None:
    """Put rows of (key, text) into a list; the chosen row stays, or the one that takes its place."""
    items = [widget.item(index) for index in range(widget.count)]
    if [(str(item.data(_ID)), item.text()) for item in items] == rows:
        return
    row, before = widget.currentRow, _chosen(widget)
    blocked = widget.blockSignals(True)
    widget.clear()
    for key, text in rows:
        item = qt.QListWidgetItem(text)
        item.setData(_ID, key)
        widget.addItem(item)
    keys = [key for key, _text in rows]
    widget.setCurrentRow(keys.index(before) if before in keys else min(row, len(rows) - 1))
    widget.blockSignals(blocked)


def _chosen(widget: Any) -> str:
    item = widget.currentItem()
    return "" if item is None else str(item.data(_ID))


def _itemText(item: Mapping[str, Any]) -> str:
    decisions = {"right": _("label is right"), "fix": _("to be fixed")}
    decided = f" [{decisions[item['decision']]}, {item['by']}]" if item["decision"] else ""
    text = _("{case}, slice {slice}: {reason}").format(case=item["case"], slice=item["slice"], reason=item["reason"])
    return text + decided


def _raterText(case: Mapping[str, Any]) -> str:
    label = {"latest": _("the approved or last one trains"), "consensus": _("the consensus trains")}
    trains = label.get(case["label"], _("revision {number} trains").format(number=case["label"]))
    return f"{case['id']}: {', '.join(case['raters'])}; {trains}"
