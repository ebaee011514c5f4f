"""A hard query budget: what is paid is never paid again, and nothing is asked past the budget."""

from sklearn.datasets import load_digits
from sklearn.svm import SVC

import surrogates

digits = load_digits()
images = (digits.images / 16).astype("float32")[:, None]
model = SVC(gamma=0.5).fit(images[:1000].reshape(1000, -1), digits.target[:1000])

ledger = surrogates.QueryLedger("budget.db", {"evaluation": 100})
target = ledger.attach(surrogates.open_target(model), purpose="evaluation", experiment="the first images")

first = target.query(images[:80]).labels
again = target.query(images[:80]).labels  # from the ledger
assert (first == again).all()
print("after asking twice  ", ledger.bill()["evaluation"])

try:
    target.query(images[80:160])
except surrogates.BudgetExceeded as error:
    print("past the budget     ", error)
print("nothing more is paid", ledger.bill()["evaluation"])
