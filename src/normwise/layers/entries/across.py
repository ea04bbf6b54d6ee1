"""Norms that pool across the batch in another way than batch norm: chunks, processes, domains, memory."""

from normwise.layers.domain import DomainNorm
from normwise.layers.entries.promises import CONSTANT
from normwise.layers.entry import NormEntry
from normwise.layers.frozen import FrozenNorm
from normwise.layers.ghost import GhostNorm
from normwise.layers.renorm import RenormNorm
from normwise.layers.sync import SyncNorm

ENTRIES = (
    NormEntry(
        name="ghost",
        cls=GhostNorm,
        fixed=True,
        axes=("N,HW",),
        summary="batch norm over chunks of the batch, each channel by itself",
        formula="y = (x - mean_kc) / sqrt(var_kc + eps) * weight + bias for chunk k",
        pools="the instances of a chunk and positions, each channel by itself",
        when="large batches that should keep the noise of small ones",
        when_not="few values per chunk; batches whose order means something",
        paper="Hoffer, Hubara and Soudry, 2017, arXiv:1705.08741",
        options={"chunk_size": int},
        option="samples per chunk (default 16); chunks are as equal as can be",
        cannot={
            "order_of_instances:train": "chunks are consecutive instances, so their order matters",
            "export:train": "the number of chunks follows from the batch size, which an export leaves open",
            "compiled_once_for_all_sizes:train": "the number of chunks follows from the batch size",
        },
    ),
    NormEntry(
        name="renorm",
        cls=RenormNorm,
        fixed=True,
        axes=("N,HW",),
        summary="batch norm tied to the remembered statistics in training too, within bounds",
        formula="y = ((x - mean_c) / std_c * r + d) * weight + bias; r, d lead to the remembered mean and std",
        pools="instances and positions, each channel by itself",
        when="small batches, or batches that are no random draw",
        when_not="the remembered statistics lag behind: start with r_max=1, d_max=0 and raise them",
        paper="Ioffe, 2017, arXiv:1702.03275",
        evidence="Ioffe, 2017: Inception-v3 normalized over 4 images, 76.5 % correct, batch norm 74.2 %",
        options={"r_max": float, "d_max": float},
        option="r_max (default 3) and d_max (default 5), the bounds of the correction",
        cannot={
            CONSTANT: "within the bounds the output is relative to the remembered mean",
            "first_and_second_derivatives:train": "r and d follow the batch but are constants to the gradient",
            "mask_has_first_and_second_derivatives": "r and d follow the batch but are constants to the gradient",
            "an_instance_and_its_neighbours:train": "neighbours have an influence only beyond the bounds",
            "remembers_the_unbiased_batch": "it remembers the average deviation, as its paper says",
        },
    ),
    NormEntry(
        name="frozen",
        cls=FrozenNorm,
        fixed=True,
        summary="batch norm with fixed statistics, in training too",
        formula="y = (x - running_mean_c) / sqrt(running_var_c + eps) * weight + bias",
        pools="nothing: the statistics are given",
        when="fine-tuning on small batches a network whose statistics are good",
        when_not="training from scratch: nothing keeps activations in bounds",
        options={"learn": int},
        option="1 (default): weight and bias learn; 0: they are fixed too",
        cannot={
            CONSTANT: "it subtracts a remembered mean, whatever the input",
            "remembers_the_unbiased_batch": "it is frozen: its statistics never move",
        },
    ),
    NormEntry(
        name="sync",
        cls=SyncNorm,
        fixed=True,
        axes=("N,HW",),
        summary="batch norm over the batches of all processes together",
        formula="y = (x - mean_c) / sqrt(var_c + eps) * weight + bias, statistics over all processes",
        pools="processes, instances and positions, each channel by itself",
        when="several processes with few values per statistic each",
        when_not="enough values in each process: then the exchange only costs time",
    ),
    NormEntry(
        name="domain",
        cls=DomainNorm,
        axes=("N,HW",),
        summary="batch norm with a memory for each domain, chosen per batch or per sample",
        formula="y = (x - mean_dc) / sqrt(var_dc + eps) * weight + bias for domain d",
        pools="the instances of a domain and positions, each channel by itself",
        when="several known sources share a network; real and generated images in one discriminator",
        when_not="the source of a sample is not known at inference",
        paper="Chang et al., 2019, arXiv:1906.03950",
        options={"domains": int},
        option="number of domains (default 2); the forward within `with nw.domain(model, index):` takes that one",
    ),
)
