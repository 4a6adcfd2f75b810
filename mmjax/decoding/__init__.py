"""Generation and scoring against the model interface: each a single compiled program."""

from mmjax.decoding.beam import Beams, beam_search
from mmjax.decoding.generate import generate
from mmjax.decoding.sampling import SamplingConfig, sample
from mmjax.decoding.scoring import score_candidates

__all__ = ["Beams", "SamplingConfig", "beam_search", "generate", "sample", "score_candidates"]
