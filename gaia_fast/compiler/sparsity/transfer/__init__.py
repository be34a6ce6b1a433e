"""One transfer rule an operator. Its docstring says what the rule gives, and what it needs of the graph.

What a rule needs of the graph it looks at itself, and raises `Unproven` where it is not so; what it needs of an image
becomes a precondition. A rule may prove too little, never too much. The modules register their rules when imported.
"""

from gaia_fast.compiler.sparsity.transfer import elementwise, linear, pooling, shape
from gaia_fast.compiler.sparsity.transfer.registry import NO_GRADIENT, name_of, rule_of, transfer

__all__ = ["NO_GRADIENT", "elementwise", "linear", "name_of", "pooling", "rule_of", "shape", "transfer"]
