from ..manifest import case_id, read_manifest  # noqa: D100, F401
