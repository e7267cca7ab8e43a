"""The Toolformer method (arXiv 2302.04761) as Ray jobs. The packages, in the order of the paper:

corpus        files → documents → passages → texts
method        section 2: select texts, sample calls, execute them, filter them by the loss
engine        the language model under that: KV cache, sampling, log-probabilities
annotation    the method on Ray Data, over a whole corpus
augmentation  annotations → C*, the corpus with its calls
finetuning    section 4.1: language modelling on C* with Ray Train and DeepSpeed
inference     section 4.2: decoding that calls tools
evaluation    section 4: accuracy by benchmark, perplexity
planning      what annotating a corpus will take
report        the results as tables
cli           the commands, the recipes and the demo
syntax        calls, prompts and tokens
storage       rows, manifests, counts and locks in output folders
runtime       the connection to Ray
base          configuration, records and the cost model

Imports go one way (docs/decisions/0020). The tools are in the package tools_service.
"""
