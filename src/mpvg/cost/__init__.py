"""What a position scheme costs: counted by torch, and by closed formulas that must agree with it.

A multiply-accumulate is two FLOPs throughout.
"""

from mpvg.cost.count import Cost, cost, costs
from mpvg.cost.hours import hours

__all__ = ["Cost", "cost", "costs", "hours"]
