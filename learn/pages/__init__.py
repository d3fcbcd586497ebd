"""The pages of the site, made from the shipped source, the executed notebooks and the documents, as Markdown.

`python learn/build.py site` gives them to MkDocs, which no file here imports: what the pages say is tested without it.
"""
