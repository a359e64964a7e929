//! Starts and templates in the fleet's histories: templates load the app or do not, die, answer late or not at all.

use super::*;

impl World {
    pub(super) fn spawn(&mut self, slot: usize, release: Release, template: Option<TemplateId>) {
        assert!(!self.is_stopping, "spawned after the stop");
        let is_next = release == Release::New;
        assert!(!is_next || self.has_next_release, "only a roll starts what is not proven");
        self.started_by_roll += usize::from(is_next);
        // A template that has died a moment ago, say.
        let is_lost = template.is_some_and(|id| !self.templates.contains_key(&id));
        if let Some(id) = template.filter(|_| !is_lost) {
            assert_eq!(self.templates[&id], (release, true), "forks from its release's, once it is ready");
            if !self.is_kind && self.chance(3) {
                self.asked.push((slot, id));
                return;
            }
        }
        if is_lost || !self.is_kind && self.chance(8) {
            self.fleet.spawn_failed(slot, self.now);
        } else {
            self.spawned(slot, release);
        }
    }

    pub(super) fn spawned(&mut self, slot: usize, release: Release) {
        let key = self.next_key;
        self.next_key += 1;
        let process = Process {
            slot,
            life: Life::Booting,
            drains: false,
            has_served: false,
            may_be_told: true,
            is_cut: false,
            is_new: release == Release::New,
        };
        self.alive.insert(key, process);
        self.fleet.spawned(slot, WorkerKey(key), self.now);
    }

    pub(super) fn start_template(&mut self, template: TemplateId, release: Release) {
        assert!(!self.is_stopping && self.plan.forks, "a template that nobody needs");
        assert!(release == Release::Good || self.has_next_release, "a template of no roll");
        let is_of_it = |(other, _): &&(Release, bool)| *other == release;
        assert_eq!(self.templates.values().filter(is_of_it).count(), 0, "one for each release");
        if !self.is_kind && self.chance(8) {
            self.fleet.template_ended(template, self.now);
        } else {
            self.templates.insert(template, (release, false));
        }
    }

    /// Something that a template does.
    pub(super) fn step_templates(&mut self) {
        let now = self.now;
        match next(&mut self.random) % 5 {
            0 | 1 => {
                if let Some(id) = self.pick_template(false) {
                    self.template_is_ready(id);
                }
            }
            2 => {
                let is_ready = self.chance(2);
                if let Some(id) = self.pick_template(is_ready) {
                    self.template_dies(id, true);
                }
            }
            3 => {
                if let Some(id) = self.pick_template(false).filter(|_| self.chance(6)) {
                    tell!(self, "template {} refuses", id.0);
                    self.templates.remove(&id);
                    self.fleet.template_refused(id, now);
                }
            }
            _ => {
                if let Some((slot, id)) = self.asked.pop() {
                    tell!(self, "slot {slot} is forked");
                    self.spawned(slot, self.templates[&id].0);
                }
            }
        }
    }

    /// A template is gone: what it was asked for has failed.
    pub(super) fn template_dies(&mut self, id: TemplateId, is_told: bool) {
        tell!(self, "template {} dies", id.0);
        self.templates.remove(&id);
        let (lost, rest): (Vec<_>, Vec<_>) = self.asked.iter().partition(|(_, asked)| *asked == id);
        self.asked = rest;
        for (slot, _) in lost {
            self.fleet.spawn_failed(slot, self.now);
        }
        if is_told {
            self.fleet.template_ended(id, self.now);
        }
    }

    /// One that loads, or one that is ready.
    pub(super) fn pick_template(&mut self, is_ready: bool) -> Option<TemplateId> {
        let fit = |(_, state): &(&TemplateId, &(Release, bool))| state.1 == is_ready;
        let fit: Vec<TemplateId> = self.templates.iter().filter(fit).map(|(id, _)| *id).collect();
        (!fit.is_empty()).then(|| fit[(next(&mut self.random) % fit.len() as u64) as usize])
    }

    pub(super) fn template_is_ready(&mut self, id: TemplateId) {
        tell!(self, "template {} is ready", id.0);
        if let Some((release, is_ready)) = self.templates.get_mut(&id) {
            *is_ready = true;
            self.had_roll_template |= *release == Release::New;
        }
        self.fleet.template_ready(id, self.now);
    }

    /// Requests wait: workers are forked for all of them at once, and started else one by one.
    pub(super) fn grow(&mut self, needed: usize) {
        // What ended before was told before, and what is to follow is known.
        self.obey();
        tell!(self, "grow by {needed}");
        let before = self.fleet.size();
        let has_joined = |slot: &&Slot| matches!(slot.front(), Front::Held(member) if !matches!(member.phase(), Phase::Booting { .. }));
        let coming = before - self.fleet.slots.iter().filter(has_joined).count();
        let free = self.plan.max_workers.saturating_sub(before);
        let at_once = match self.templates.values().any(|state| *state == (Release::Good, true)) {
            true => needed,
            false => 1,
        };
        let is_running = self.fleet.stage == Stage::Running;
        self.fleet.grow(needed, self.now);
        let grown = if is_running { at_once.saturating_sub(coming).min(free) } else { 0 };
        assert_eq!(self.fleet.size() - before, grown, "{needed} are needed, and {coming} on their way");
    }

    /// All have loaded the app, and do what they were asked for.
    pub(super) fn templates_are_kind(&mut self) {
        for (slot, id) in std::mem::take(&mut self.asked) {
            self.spawned(slot, self.templates[&id].0);
            self.obey();
        }
        while let Some(id) = self.pick_template(false) {
            self.template_is_ready(id);
            self.obey();
        }
    }

    pub(super) fn check_templates(&self) {
        let known: Vec<TemplateId> = self.fleet.templates().collect();
        let has_actions = !self.fleet.actions.is_empty();
        assert!(
            has_actions
                || known.len() == self.templates.len()
                    && known.iter().all(|id| self.templates.contains_key(id)),
            "the fleet knows the templates that are there: {known:?}, {:?}",
            self.templates
        );
    }
}
