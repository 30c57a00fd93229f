"""Row-wise passes: many interventions together, each with the rows that it changes.

A base run (`base`) is kept; interventions become items (`batches`) of passes
(`packing`), whose rows go through the layers as one sequence (`rows`), with what they
do on the way (`script`, `edits`) and attention of their own (`row_attention`,
`kernels`). `decoding` goes on from there, word by word. `costs` tells what it takes.
"""
