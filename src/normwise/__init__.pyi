from normwise import functional as functional
from normwise.experiment.compare import Comparison as Comparison
from normwise.experiment.compare import compare as compare
from normwise.experiment.task import task as task
from normwise.experiment.trial import Scores as Scores
from normwise.experiment.trial import Trial as Trial
from normwise.layers import NORMS as NORMS
from normwise.layers.batch import BatchNorm as BatchNorm
from normwise.layers.batch import BatchNorm1d as BatchNorm1d
from normwise.layers.batch import BatchNorm2d as BatchNorm2d
from normwise.layers.batch import BatchNorm3d as BatchNorm3d
from normwise.layers.blend import BatchInstanceNorm as BatchInstanceNorm
from normwise.layers.blend import SwitchableNorm as SwitchableNorm
from normwise.layers.spec import build as build
from normwise.layers.within import ChannelAffine as ChannelAffine
from normwise.layers.within import GroupNorm as GroupNorm
from normwise.layers.within import InstanceNorm as InstanceNorm
from normwise.layers.within import InstanceNorm1d as InstanceNorm1d
from normwise.layers.within import InstanceNorm2d as InstanceNorm2d
from normwise.layers.within import InstanceNorm3d as InstanceNorm3d
from normwise.ops import backend as backend
from normwise.surgery.fold import fold as fold
from normwise.surgery.recalibrate import recalibrate as recalibrate
from normwise.surgery.swap import swap as swap
from normwise.table import Moments as Moments
from normwise.table import moments as moments

__version__: str
