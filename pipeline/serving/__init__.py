"""The model as an endpoint that clients of OpenAI's API can use: `toolformer serve`.

In: a model and requests over HTTP. Out: completions with the calls made, whole or as a stream. How a prompt
is decoded is in pipeline.inference; evaluation does not go through this package.
"""
