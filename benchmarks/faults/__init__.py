"""What a stranger's files, a kill, a full disk and a changing source do to the tool: a campaign that looks for harm.

content     what lies in the place of one file: bytes, a link, a folder, nothing
mutators    one change of a file each, drawn from a seed
surfaces    which file is changed, and the reader that must bear it
isolated    one input after the other in a forked process with limits on memory and time
readers     the inputs, their findings, and the smallest form of each
server      the command line in processes forked from one that has imported everything
disasters   whole builds: changed checkpoints, kills, full and closed disks, sources that change meanwhile
results     figures and findings, stored and written as a table
"""
