"""Our models in EleutherAI's lm-evaluation-harness, with tool calls on or off (docs/harness.md).

Importing this package registers the model `toolformer` with lm_eval, which must be installed
(`pip install 'lm_eval>=0.4.13,<0.5'`): lm_eval has no entry points for models. In: tasks of the harness. Out:
its results. likelihood.py computes likelihoods, gen_kwargs.py reads a task's decoding parameters,
model.py is the model, run.py the command.
"""

from pipeline.harness.model import ToolformerLM

__all__ = ["ToolformerLM"]
