"""The plain functions under the asset bodies; no Dagster here.

Every step takes a `Work` and returns an `Outcome`, and does the same four things:

1. finished?  its folder has a MANIFEST.json: verify it, report the same data version and inputs, launch nothing
2. reusable?  prepared data with an equal cache key are taken as they are; a step that this execution does not perform takes the
              newest earlier run's artifact whose inputs fit
3. work       in this process (reconciliation, counts) or in a job (preparation, training, tuning, inference)
4. publish    copy to the final place, MANIFEST.json last

    snapshot -> reconciliation -> label_counts
                               -> preparation -> training -> inference
"""
