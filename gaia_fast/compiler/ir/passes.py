"""What a pass is: one rewrite of a graph, with what it requires, and what holds after every one."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from torch import fx

from gaia_fast.compiler.ir.types import infer_types, untyped
from gaia_fast.errors import CompilationError

DUMP = "GAIA_FAST_DUMP"  # a folder: the graph after every pass is written there, for who works on a pass

Rewriting = Callable[[fx.GraphModule], fx.GraphModule | None]


class Pass:
    """A rewrite of a graph, in place. After it no node is dead, every node that is a tensor has its type, and what runs
    is what the graph says.

    Args:
        name: what it is called where it is missing, fails, or is written to a file.
        rewriting: changes the graph, or returns another.
        requires: passes that have to be run before.
    """

    def __init__(self, name: str, rewriting: Rewriting, requires: "Iterable[Pass]" = ()) -> None:
        self.name, self.rewriting, self.requires = name, rewriting, tuple(requires)

    def __repr__(self) -> str:
        return f"Pass({self.name!r})"

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        """Rewrites a graph.

        Raises:
            CompilationError: a required pass was not run, or a node was left without a type.
        """
        done: list[str] = module.meta.get("passes", [])
        if missing := [each.name for each in self.requires if each.name not in done]:
            raise CompilationError(f"the pass {self.name!r} requires {missing}, and what was run is {done}")
        rewritten = self.rewriting(module) or module
        clean_up(rewritten)
        rewritten.meta["passes"] = [*done, self.name]
        if left := untyped(rewritten):
            raise CompilationError(f"the pass {self.name!r} leaves {left[:5]} without a type")
        if folder := os.environ.get(DUMP):
            _dump(rewritten, Path(folder))
        return rewritten


def clean_up(module: fx.GraphModule) -> None:
    """Takes out what nothing reads, gives every node its type, and compiles the graph."""
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    infer_types(module)
    module.graph.lint()
    module.recompile()


def _dump(module: fx.GraphModule, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.iterdir()))
    lines = [f"{node.format_node()}  # {_type(node)}" for node in module.graph.nodes]
    name = module.meta["passes"][-1].replace(" ", "-")
    (folder / f"{number:03}-{name}.txt").write_text("\n".join(lines) + "\n")


def _type(node: fx.Node) -> str:
    value = node.meta.get("val")
    return f"{value.dtype} {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__
