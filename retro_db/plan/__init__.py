"""What a build will take, known before anything runs; needs the extra `build`."""

from retro_db.plan.facts import TOKENS_PER_DOCUMENT, Facts, estimated_facts, given_facts
from retro_db.plan.planning import IndexPlan, Plan, make_plan

__all__ = [
    "TOKENS_PER_DOCUMENT",
    "Facts",
    "IndexPlan",
    "Plan",
    "estimated_facts",
    "given_facts",
    "make_plan",
]
