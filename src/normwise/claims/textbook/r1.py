"""R1: batch normalization is tricky through time."""

from normwise.claims.claim import Chart, Claim, Part, Published, Table, cell, gap
from normwise.claims.experiments.recurrent import ADDING_STEPS, BATCH, EPOCHS, HIDDEN, NORMS, TEXT_STEPS

SHARED, STEP, LAYER, NONE = (cell(norm=norm, task="digits") for norm in ("shared", "batch", "layer", "none"))

R1 = Claim(
    id="R1",
    title="Recurrent networks",
    statement="Batch normalization is tricky in recurrent networks, as statistics change through time; others work.",
    row="Use case",
    parts=(
        Part(
            "statistics shared by all steps",
            "accuracy on permuted digits, shared statistics minus no norm",
            gap(SHARED, NONE, "judge"),
            "recurrent",
            sign=-1,
            delta=0.02,
            refuted_by="batch norm with one set of statistics for all steps does no harm",
            unit="points",
        ),
        Part(
            "training against evaluation",
            "accuracy on training samples in training mode minus that in evaluation mode; shared minus per-step "
            "statistics",
            gap(SHARED, STEP, "mode_gap"),
            "recurrent",
            sign=1,
            delta=0.02,
            refuted_by="shared statistics are as right in evaluation as those per step",
            unit="points",
        ),
        Part(
            "statistics per step",
            "accuracy on permuted digits, batch norm per time step minus no norm",
            gap(STEP, NONE, "judge"),
            "recurrent",
            sign=-1,
            delta=0.02,
            refuted_by="with statistics per step and small first weights batch norm works",
            unit="points",
        ),
        Part(
            "layer norm works",
            "accuracy on permuted digits, layer norm minus no norm",
            gap(LAYER, NONE, "judge"),
            "recurrent",
            sign=1,
            delta=0.01,
            refuted_by="layer norm brings nothing",
            unit="points",
        ),
        Part(
            "adding problem",
            "log10 of the squared error, batch norm per step minus layer norm",
            gap(cell(norm="layer", task="adding"), cell(norm="batch", task="adding"), "judge"),
            "recurrent",
            sign=1,
            delta=0.2,
            refuted_by="batch norm per step is as good as layer norm",
            unit="decades",
        ),
        Part(
            "rows instead of mixed-up pixels",
            "accuracy on digits read in order, shared statistics minus no norm",
            gap(cell(norm="shared", task="rows"), cell(norm="none", task="rows"), "judge"),
            "recurrent",
            sign=-1,
            delta=0.02,
            refuted_by="with pixels in order shared statistics do no harm",
            unit="points",
        ),
        Part(
            "text",
            "bits per character, batch norm per step minus layer norm",
            gap(cell(norm="layer", task="text"), cell(norm="batch", task="text"), "judge"),
            "recurrent",
            sign=1,
            delta=0.02,
            refuted_by="batch norm per step is as good as layer norm",
            unit="bits",
        ),
    ),
    design=(
        f"An LSTM of {HIDDEN} units reads a digit in 16 pieces of 4 pixels, mixed up once and for all or in order, "
        f"adds two marked numbers of {ADDING_STEPS}, or guesses the next of {TEXT_STEPS} characters of Python's help "
        f"texts; {EPOCHS} epochs, batch {BATCH}, Adam, the rate tuned for each norm and task (in order: as mixed up). "
        "Batch norm per step has first weights of 0.1 and noise on the first state, as its paper asks."
    ),
    chart=Chart(
        "recurrent",
        "norm",
        "judge",
        "weight",
        "norm",
        "accuracy on permuted digits",
        "shared: one set of statistics for all time steps; batch: one for each. weight 1: batch norm's first weights "
        "are 1; usual: 0.1.",
        only={"task": "digits", "length": None},
    ),
    tables=(
        Table(
            "Score at each norm's tuned rate: accuracy, minus log10 of the squared error, minus bits per character",
            "recurrent",
            {
                norm: {task: (cell(norm=norm, task=task), "judge") for task in ("digits", "rows", "adding", "text")}
                for norm in NORMS
            },
        ),
    ),
    published=(
        Published(
            "LSTM against its batch norm per step: permuted MNIST 90.2 and 95.4 %, text8 1.43 and 1.36 bits; "
            "averaging statistics over time severely degrades",
            "Cooijmans et al., Recurrent batch normalization, 2017",
            "read",
        ),
        Published(
            "batch norm helps from input to hidden state, not from hidden state to hidden state",
            "Laurent et al., Batch normalized recurrent neural networks, 2015",
            "secondary",
        ),
    ),
    pilot="the parts on rows and on text, of which one or two seeds had been seen",
    limits="Short sequences and few epochs.",
)
