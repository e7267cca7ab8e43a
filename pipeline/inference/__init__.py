"""Step 7: text generation with tool calls (paper section 4.2, "Decoding").

Prompts, a language model and a tool client go in; one `Generation` per prompt comes out. The
package knows no benchmarks and no Ray.
"""
