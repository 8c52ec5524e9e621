"""What all readers of jaxprs share: nested jaxprs, and lists of primitives."""

from jaxprune.jaxpr._control import CALLS as CALLS
from jaxprune.jaxpr._control import CHECKPOINTS as CHECKPOINTS
from jaxprune.jaxpr._control import CUSTOM_DERIVATIVES as CUSTOM_DERIVATIVES
from jaxprune.jaxpr._control import inner_jaxprs as inner_jaxprs
from jaxprune.jaxpr._control import open_jaxpr as open_jaxpr
from jaxprune.jaxpr._control import read_branches as read_branches
from jaxprune.jaxpr._control import read_call as read_call
from jaxprune.jaxpr._control import read_custom_consts as read_custom_consts
from jaxprune.jaxpr._control import read_jvp as read_jvp
from jaxprune.jaxpr._control import read_manual_axes as read_manual_axes
from jaxprune.jaxpr._control import read_scan as read_scan
from jaxprune.jaxpr._control import read_while as read_while
from jaxprune.jaxpr._folding import fold as fold
from jaxprune.jaxpr._primitives import ELEMENTWISE as ELEMENTWISE
from jaxprune.jaxpr._primitives import PRODUCTS as PRODUCTS
from jaxprune.jaxpr._primitives import QUOTIENTS as QUOTIENTS
from jaxprune.jaxpr._primitives import ZERO_FORGETTING as ZERO_FORGETTING
from jaxprune.jaxpr._primitives import ZERO_PRESERVING_BINARY as ZERO_PRESERVING_BINARY
from jaxprune.jaxpr._primitives import ZERO_PRESERVING_UNARY as ZERO_PRESERVING_UNARY
