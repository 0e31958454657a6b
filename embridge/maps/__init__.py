"""Maps between spaces: affine maps and kernel maps."""

from embridge.maps.kernel import KernelMap as KernelMap
from embridge.maps.linear import LinearMap as LinearMap
from embridge.maps.loading import Map as Map
from embridge.maps.loading import load_map as load_map
