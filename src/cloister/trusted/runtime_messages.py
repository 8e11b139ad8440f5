"""What callers of a trusted machine say to it, inside the records of an attested conversation.

upload   the next piece of a file (PLAN or TEMPLATE) of so many bytes
open     the plan with this digest: the one that came, or that of the machine's bundle; the answer
         has the public key of receipts, which is empty where no ticket buys outputs
run      so many packed inputs (packed_values.py); the answer is a packed result (packed_result.py)
"""

UPLOAD, OPEN, RUN = "upload", "open", "run"
PLAN, TEMPLATE = "plan", "template"
"""Files: a plan's canonical bytes, and the model with free sizes that it was made from."""
PIECE_BYTES = 8 << 20
RUN_BYTES = 256 << 20
"""Of the inputs of one call."""
RESULT_BYTES = 256 << 20
"""Of the packed result of one call. The service holds it, and keeps it to send it again."""
ANSWER_S = 660.0
"""How long a caller waits for an answer: longer than a call may take."""
