"""The intermediate representation: types, operators, graphs and their only writer."""

from lamina.compiler.ir.builder import Builder
from lamina.compiler.ir.graph import Graph, Node, Scope, Value
from lamina.compiler.ir.op import Op, OpError
from lamina.compiler.ir.types import Dim, TensorType, symbol

__all__ = ["Builder", "Dim", "Graph", "Node", "Op", "OpError", "Scope", "TensorType", "Value",
           "symbol"]
