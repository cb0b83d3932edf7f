/* The few thread primitives the pool needs, on POSIX and Windows. */
#ifndef LC_THREADS_H
#define LC_THREADS_H

#if defined(_WIN32)

#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#include <process.h>

typedef SRWLOCK lc_mutex;
typedef CONDITION_VARIABLE lc_cond;
typedef HANDLE lc_thread;
#define LC_THREAD_FN(name, argument) static unsigned __stdcall name(void *argument)
#define LC_THREAD_RETURN return 0

static inline void lc_mutex_init(lc_mutex *m) { InitializeSRWLock(m); }
static inline void lc_mutex_destroy(lc_mutex *m) { (void)m; }
static inline void lc_mutex_lock(lc_mutex *m) { AcquireSRWLockExclusive(m); }
static inline void lc_mutex_unlock(lc_mutex *m) { ReleaseSRWLockExclusive(m); }
static inline void lc_cond_init(lc_cond *c) { InitializeConditionVariable(c); }
static inline void lc_cond_destroy(lc_cond *c) { (void)c; }
static inline void lc_cond_wait(lc_cond *c, lc_mutex *m) { SleepConditionVariableSRW(c, m, INFINITE, 0); }
static inline void lc_cond_broadcast(lc_cond *c) { WakeAllConditionVariable(c); }
static inline int lc_thread_start(lc_thread *thread, unsigned(__stdcall *fn)(void *), void *argument) {
    *thread = (HANDLE)_beginthreadex(NULL, 0, fn, argument, 0, NULL);
    return *thread != NULL;
}
static inline void lc_thread_join(lc_thread thread) {
    WaitForSingleObject(thread, INFINITE);
    CloseHandle(thread);
}
static inline long lc_process_id(void) { return (long)GetCurrentProcessId(); }

#else

#include <pthread.h>
#include <unistd.h>

typedef pthread_mutex_t lc_mutex;
typedef pthread_cond_t lc_cond;
typedef pthread_t lc_thread;
#define LC_THREAD_FN(name, argument) static void *name(void *argument)
#define LC_THREAD_RETURN return NULL

static inline void lc_mutex_init(lc_mutex *m) { pthread_mutex_init(m, NULL); }
static inline void lc_mutex_destroy(lc_mutex *m) { pthread_mutex_destroy(m); }
static inline void lc_mutex_lock(lc_mutex *m) { pthread_mutex_lock(m); }
static inline void lc_mutex_unlock(lc_mutex *m) { pthread_mutex_unlock(m); }
static inline void lc_cond_init(lc_cond *c) { pthread_cond_init(c, NULL); }
static inline void lc_cond_destroy(lc_cond *c) { pthread_cond_destroy(c); }
static inline void lc_cond_wait(lc_cond *c, lc_mutex *m) { pthread_cond_wait(c, m); }
static inline void lc_cond_broadcast(lc_cond *c) { pthread_cond_broadcast(c); }
static inline int lc_thread_start(lc_thread *thread, void *(*fn)(void *), void *argument) {
    return pthread_create(thread, NULL, fn, argument) == 0;
}
static inline void lc_thread_join(lc_thread thread) { pthread_join(thread, NULL); }
static inline long lc_process_id(void) { return (long)getpid(); }

#endif

/* Tells the core that this is a waiting loop. */
static inline void lc_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

#endif
