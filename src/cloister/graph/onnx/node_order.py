"""An order in which nodes can run: a file may have them in any."""

from cloister.graph.graph import Node
from cloister.graph.part import reads


def sorted_nodes(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """The nodes, each behind those whose values it reads; as they are where they can run so.

    Nodes that wait for each other stay in some order.
    """
    makers = {value: node for node in nodes for value in node.outputs if value}
    placed: dict[str, Node] = {}
    seen: set[str] = set()
    for first in nodes:
        pending = [first]
        while pending:
            node = pending[-1]
            needed = [makers[value] for value in reads(node) if value in makers]
            waiting = [one for one in needed if one.name not in seen]
            seen.add(node.name)
            if waiting:
                pending += reversed(waiting)
            else:
                placed.setdefault(node.name, pending.pop())
    return tuple(placed.values())
