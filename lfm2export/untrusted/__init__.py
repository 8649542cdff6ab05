"""What comes from a stranger: every name, link, JSON document and text of a checkpoint, an artifact or a repository.

One module decides each question, and the rest of the package asks it:

    paths        whether a name from outside may become a path, and whether a link may be followed
    json_reader  JSON: size, depth, encoding, duplicate keys
    yaml_reader  YAML: size, depth, aliases; nothing is constructed
    text         UTF-8 texts: templates, licences, cards
    escape       names written into Markdown, Python and JavaScript

Nothing here runs what it reads.
"""
