"""The correction loop: cases, revisions, the frozen split, the queue, the gate, the review of doubtful labels.

Everything in this room loads without PyTorch; what trains or predicts imports it when it runs.
"""

from ..errors import CaseOpenError
from .gate import CaseFigures, GateDecision, GateRule
from .layout import is_store
from .queue import ORDERS, Suggestion
from .records import STATES, Case, CtFacts, LockInfo, Prediction, ReviewItem, Revision, State
from .review import center_ras
from .session import Session
from .store import Store
from .store_models import StoredModel
from .work import RENEW_S, Autosave

__all__ = [
    "ORDERS",
    "RENEW_S",
    "STATES",
    "Autosave",
    "Case",
    "CaseFigures",
    "CaseOpenError",
    "CtFacts",
    "GateDecision",
    "GateRule",
    "LockInfo",
    "Prediction",
    "ReviewItem",
    "Revision",
    "Session",
    "State",
    "Store",
    "StoredModel",
    "Suggestion",
    "center_ras",
    "is_store",
]
