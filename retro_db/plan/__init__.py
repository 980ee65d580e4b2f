"""What a build will take, known before anything runs; needs the extra `build`."""

from retro_db.plan.breadth_law import BreadthLaw
from retro_db.plan.build_plan import Plan, make_plan
from retro_db.plan.corpus_facts import TOKENS_PER_DOCUMENT, Facts, estimated_facts, given_facts
from retro_db.plan.hours import JOIN, MeasuredRates
from retro_db.plan.index_plan import IndexPlan
from retro_db.plan.join_plan import BreadthPlan, JoinPlan
from retro_db.plan.stage_needs import StageNeeds

__all__ = [
    "JOIN",
    "TOKENS_PER_DOCUMENT",
    "BreadthLaw",
    "BreadthPlan",
    "Facts",
    "IndexPlan",
    "JoinPlan",
    "MeasuredRates",
    "Plan",
    "StageNeeds",
    "estimated_facts",
    "given_facts",
    "make_plan",
]
