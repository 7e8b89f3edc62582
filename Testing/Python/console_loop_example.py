"""The correction loop from Slicer's Python console: the example of docs/engineer.md, run by a test."""

from COVIDLesionSeg import COVIDLesionSegTrainingLogic
from COVIDLesionSegLib.cases import Store

store, training = Store.create("loop"), COVIDLesionSegTrainingLogic()
store.import_cases("my-data", rater="expert")  # pairs of CT and mask; store.add("ct.nii.gz") for a CT alone
training.wait(training.predict(store))  # predictions for all waiting cases, with their uncertainty
while (suggestion := store.next("anna")) is not None:
    with store.open(suggestion.case.id, "anna") as case:
        case.save(correct(case.read_ct(), case.start_mask.mask()))  # noqa: F821  # your own correction
job = training.fineTune(store, steps=300)  # goes on when Slicer ends; training.status(job), training.cancel(job)
gate = training.wait(job).result["gate"]
print(gate["passed"], *gate["reasons"])
for item in store.review.items():
    store.review.decide(item.case, item.slice, "right", "anna")
print(training.compare([gate["old"], gate["new"]])["mean_dice"])
