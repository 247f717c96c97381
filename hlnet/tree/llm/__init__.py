"""Class trees nested by a language model, as in the paper (Sec. 3.2).

``nesting`` asks, checks, asks again and places the rest; ``server`` asks a server; ``answer`` reads a reply in whatever
``forms`` it comes, matching ``names``; ``check`` says what is wrong with it and mends it.
"""
