// The end of an engine whose step may never return, as on a GPU that hangs: its loop cannot be joined then.
#pragma once

#include <functional>

#include "base/clock.h"
#include "worker/engine/engine.h"

namespace terrace {

// Engine::Stop. When the step in progress stalls (IsStalled), or already has, `on_hang` is called, once, with
// the time since the engine last made progress. It should end the process: behind one that returns, or
// without one, the step is waited for, however long it takes.
void StopEngine(Engine& engine, Duration stall_limit, const std::function<void(Duration)>& on_hang,
                const Clock& clock = RealClock());

}  // namespace terrace
