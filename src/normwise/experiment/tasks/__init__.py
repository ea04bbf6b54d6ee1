"""Built-in tasks that are more than a data set: they bring their network, loss or score."""

from normwise.experiment.tasks.charlm import CharLM
from normwise.experiment.tasks.sequence_digits import SequenceDigits
from normwise.experiment.tasks.shift import FashionShift
from normwise.experiment.tasks.stylize import Stylize

TASKS = {task.name: task for task in (FashionShift, SequenceDigits, CharLM, Stylize)}
