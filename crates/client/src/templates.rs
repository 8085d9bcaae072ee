//! The templates of one fork server: which there are, who waits for one, and which may go.
//!
//! Promises: one template for one policy however many ask for it at once; a template whose build failed is forgotten, so
//! the next launch tries anew; past the bound the one that was idle longest goes, and a busy one never does (then there
//! are more for a while). Bookkeeping only: the client sends and receives. A template's identity is the hash of its plan,
//! which names its bind sources by device and inode, and the ids it was built for.

use std::collections::HashMap;
use std::sync::Arc;

use nestbox_policy::{Hash, Resolved};

use crate::channel::Channel;
use crate::ids::OuterIds;
use crate::launch::Landlock;
use crate::nests::{Nest, Nests, Warm};
use crate::numbered::Numbered;

/// What makes two launches share a template.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TemplateKey {
    pub(crate) hash: Hash,
    pub(crate) ids: OuterIds,
}

/// How far a template is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It waits for the initial namespaces.
    Planned,
    /// It was asked for.
    Building,
    /// It takes launches.
    Ready,
}

pub(crate) struct Template {
    /// `None`: for one launch only (its root is writable), never found again.
    pub(crate) key: Option<TemplateKey>,
    pub(crate) stage: Stage,
    pub(crate) channel: Option<Channel>,
    pub(crate) resolved: Arc<Resolved>,
    /// Tokens of the launches and preparations that wait for it.
    pub(crate) waiters: Vec<u64>,
    /// Launches that it or its nests serve now.
    pub(crate) running: usize,
    /// Binds that could not be id-mapped, and Landlock where the kernel has none.
    pub(crate) skipped: Vec<String>,
    /// What Landlock adds to its nests.
    pub(crate) landlock: Option<Landlock>,
    /// It died while it was being built, and is being built once more.
    pub(crate) retried: bool,
    /// Those that wait for launches.
    pub(crate) nests: Nests,
    /// Warm nests that are to be made, and when (`CLOCK_MONOTONIC`).
    pub(crate) refill: Option<(u64, Warm)>,
    /// Tokens of those who asked for warm nests and have not got them all.
    pub(crate) warming: Vec<u64>,
    /// The launch of it that ended last has written more than a pipe holds.
    pub(crate) much_output: bool,
    last_used: u64,
}

impl Template {
    fn is_idle(&self) -> bool {
        self.stage == Stage::Ready && self.running == 0 && self.waiters.is_empty() && self.warming.is_empty()
    }
}

#[derive(Default)]
pub(crate) struct Templates {
    by_key: HashMap<TemplateKey, u64>,
    all: Numbered<Template>,
    /// Counts uses, for the order of eviction.
    clock: u64,
    bound: usize,
}

impl Templates {
    pub(crate) fn new(bound: usize) -> Self {
        Self { bound: bound.max(1), ..Self::default() }
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// The template of `key`, if there is one (being built, too).
    pub(crate) fn find(&mut self, key: &TemplateKey) -> Option<u64> {
        let id = *self.by_key.get(key)?;
        self.clock += 1;
        self.all.get_mut(&id)?.last_used = self.clock;
        Some(id)
    }

    /// Adds one under `id`, to be built.
    pub(crate) fn plan(&mut self, id: u64, key: Option<TemplateKey>, resolved: Arc<Resolved>) {
        self.clock += 1;
        if let Some(key) = &key {
            self.by_key.insert(key.clone(), id);
        }
        let template = Template {
            key,
            stage: Stage::Planned,
            channel: None,
            resolved,
            waiters: Vec::new(),
            running: 0,
            skipped: Vec::new(),
            landlock: None,
            retried: false,
            nests: Nests::default(),
            refill: None,
            warming: Vec::new(),
            much_output: false,
            last_used: self.clock,
        };
        self.all.insert(id, template);
    }

    pub(crate) fn get(&self, id: u64) -> Option<&Template> {
        self.all.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut Template> {
        self.all.get_mut(&id)
    }

    /// Those that wait for the initial namespaces.
    pub(crate) fn planned(&self) -> Vec<u64> {
        self.all.iter().filter(|(_, template)| template.stage == Stage::Planned).map(|(id, _)| *id).collect()
    }

    /// The template that keeps this warm nest.
    pub(crate) fn of_nest(&mut self, nest: u64) -> Option<(u64, &mut Nest)> {
        self.all.iter_mut().find_map(|(id, template)| Some((*id, template.nests.get_mut(nest)?)))
    }

    /// All there are.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Template> {
        self.all.values_mut()
    }

    /// All there are.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Template> {
        self.all.values()
    }

    /// Those that are to get warm nests.
    pub(crate) fn refills(&self) -> Vec<(u64, (u64, Warm))> {
        self.all.iter().filter_map(|(id, template)| Some((*id, template.refill?))).collect()
    }

    /// Those for which somebody waits until they have enough warm nests.
    pub(crate) fn warming(&self) -> Vec<u64> {
        self.all.iter().filter(|(_, template)| !template.warming.is_empty()).map(|(id, _)| *id).collect()
    }

    /// Takes one out.
    pub(crate) fn remove(&mut self, id: u64) -> Option<Template> {
        let template = self.all.remove(&id)?;
        if let Some(key) = &template.key
            && self.by_key.get(key) == Some(&id)
        {
            self.by_key.remove(key);
        }
        Some(template)
    }

    /// One launch of it is over. Returns the template if it was for that launch only, to be closed.
    pub(crate) fn release(&mut self, id: u64) -> Option<Template> {
        let template = self.all.get_mut(&id)?;
        template.running = template.running.saturating_sub(1);
        if template.key.is_none() && template.is_idle() { self.remove(id) } else { None }
    }

    /// Takes out what is over the bound: idle ones, the longest unused first.
    pub(crate) fn evict(&mut self) -> Vec<Template> {
        let mut evicted = Vec::new();
        // Those for one launch are not kept anyway, and push out none that is.
        while self.by_key.len() > self.bound {
            let idle = self.all.iter().filter(|(_, template)| template.key.is_some() && template.is_idle());
            let Some(oldest) = idle.min_by_key(|(_, template)| template.last_used).map(|(id, _)| *id) else {
                break;
            };
            evicted.extend(self.remove(oldest));
        }
        evicted
    }

    /// Makes every template unfindable, and takes out the idle ones: the namespaces they were built in are no longer
    /// ours to build more in. The busy ones go when their last launch does.
    pub(crate) fn retire(&mut self) -> Vec<Template> {
        self.by_key.clear();
        let idle: Vec<u64> =
            self.all.iter().filter(|(_, template)| template.is_idle()).map(|(id, _)| *id).collect();
        for template in self.all.values_mut() {
            template.key = None;
        }
        idle.into_iter().filter_map(|id| self.remove(id)).collect()
    }

    /// Takes out all.
    pub(crate) fn clear(&mut self) -> Vec<Template> {
        self.by_key.clear();
        self.all.drain().map(|(_, template)| template).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: u8) -> TemplateKey {
        TemplateKey { hash: Hash([name; 32]), ids: OuterIds::default() }
    }

    fn resolved() -> Arc<Resolved> {
        crate::policy::tests::handle(&[]).resolve().expect("resolves")
    }

    fn with(names: &[u8], bound: usize) -> Templates {
        let mut templates = Templates::new(bound);
        for (id, name) in names.iter().enumerate() {
            templates.plan(id as u64, Some(key(*name)), resolved());
            templates.all.get_mut(&(id as u64)).expect("there").stage = Stage::Ready;
        }
        templates
    }

    #[test]
    fn the_longest_unused_idle_one_goes() {
        let mut templates = with(b"abc", 2);
        assert_eq!(templates.find(&key(b'a')), Some(0));
        let gone = templates.evict();
        assert_eq!(gone.len(), 1);
        assert_eq!(templates.find(&key(b'b')), None);
        assert_eq!(templates.find(&key(b'a')), Some(0));
    }

    #[test]
    fn busy_ones_stay_past_the_bound() {
        let mut templates = with(b"ab", 1);
        templates.get_mut(0).expect("there").running = 1;
        templates.get_mut(1).expect("there").waiters.push(9);
        assert!(templates.evict().is_empty());
        assert!(templates.release(0).is_none(), "it can be found again");
        assert_eq!(templates.evict().len(), 1);
    }

    #[test]
    fn one_for_a_single_launch_goes_with_it() {
        let mut templates = with(&[], 4);
        templates.plan(7, None, resolved());
        let template = templates.get_mut(7).expect("there");
        (template.stage, template.running) = (Stage::Ready, 1);
        assert!(templates.release(7).is_some());
        assert_eq!(templates.len(), 0);
    }

    #[test]
    fn retired_ones_are_not_found_again() {
        let mut templates = with(b"ab", 4);
        templates.get_mut(0).expect("there").running = 1;
        assert_eq!(templates.retire().len(), 1);
        assert_eq!(templates.find(&key(b'a')), None);
        assert!(templates.release(0).is_some(), "it goes with its last launch");
    }
}
