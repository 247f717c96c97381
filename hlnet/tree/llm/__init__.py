"""Class trees nested by a language model.

nest               ask, check the answer, ask again, place the rest
server             a server that speaks OpenAI's protocol
answer             a tree out of whatever the model replied
check              what is wrong with it, and the mend
forms              shapes that answers come in
names              class names as models spell them
"""
