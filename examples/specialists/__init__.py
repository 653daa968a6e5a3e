"""Small models that each know one thing: written dates or number words of one language, into a plain form.

Lives here: the generators of training data (`dates`, `numbers`, `data`), training (`train`), measurement through vLLM
(`evaluate`), the model cards (`card`) and the trained weights (`models/`). How a worker serves them lives elsewhere.
"""
